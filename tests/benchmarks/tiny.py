"""A tiny config with the structure of a real one, for checkpoints that are quick to write."""

from typing import Any

from benchmarks.synthetic import LLAMA_1B

TINY: dict[str, Any] = {
    **LLAMA_1B,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
