"""Benchmark scripts that choose workloads, their records as JSON, and the generated tables."""
