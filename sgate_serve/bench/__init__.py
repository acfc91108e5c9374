"""Benchmarks: models interleaved in one run, compared with the ideal, and servers under load."""
