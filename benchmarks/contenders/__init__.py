"""The engines that benchmarks/engine_speed.py compares, each run in its own process."""
