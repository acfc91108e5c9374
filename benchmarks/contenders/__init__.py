"""Other engines, and ours, each in a process of its own: see benchmarks/engine_speed.py."""
