"""Model architectures: families as data, and one model's widths and constants from its config.

It reads nothing but the JSON of a config, and knows no engine.
"""
