"""The gates folder, which training writes and the compiler reads. Numpy only, no torch."""

from sgate_serve.gates.fingerprint import gates_fingerprint
from sgate_serve.gates.folder import DELTAS_FILE, GATES_FILE, Gates, with_added_biases

__all__ = ["DELTAS_FILE", "GATES_FILE", "Gates", "gates_fingerprint", "with_added_biases"]
