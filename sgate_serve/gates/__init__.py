"""The gates folder: what training hands to the compiler. Numpy only, no torch."""

from sgate_serve.gates.folder import DELTAS_FILE, GATES_FILE, Gates, with_added_biases

__all__ = ["DELTAS_FILE", "GATES_FILE", "Gates", "with_added_biases"]
