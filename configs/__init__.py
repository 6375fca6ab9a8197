"""Configurations that ship: demo, local, production, and two for `ray up`."""
