"""Loads a server for a long time with everything at once: see `__main__`."""
