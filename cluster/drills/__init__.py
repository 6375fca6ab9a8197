"""Faults that are done on purpose, and pure functions that judge what became of them."""
