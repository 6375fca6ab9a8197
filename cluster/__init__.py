"""Actors: config, lag, scaling, rollout, the supervisor, the page and the command line."""
