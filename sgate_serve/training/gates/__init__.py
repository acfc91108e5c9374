"""Trained gates: their relaxations, initialization, expected removal and budget."""
