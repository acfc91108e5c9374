"""What a model is: families as data, one model's widths and constants, read from its config.

Knows no file but the config's JSON, and no engine.
"""
