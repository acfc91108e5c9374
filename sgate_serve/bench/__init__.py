"""Benchmarks: dense and pruned models interleaved in one run, compared with the ideal."""
