"""Measuring: dense and pruned models interleaved in one run, beside what would be ideal."""
