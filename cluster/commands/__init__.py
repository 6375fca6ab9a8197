"""One file for each command; `cli.py` puts them together."""
