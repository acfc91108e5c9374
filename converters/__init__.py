"""Masks to a plan, and a plan to deployable files. Pure of engines: neither imports the other."""
