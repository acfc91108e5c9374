"""Options for the sizes of the random models that benchmarks measure."""

from dataclasses import dataclass
from typing import Any

from sgate_serve.bench.workload import Workload
from sgate_serve.demo.sizes import DemoSizes
from sgate_serve.options import option

HEAD_DIM = 64


@dataclass(frozen=True)
class DemoShape:
    """The demo's larger shape at any depth, measured in short runs."""

    layers: int = option(24, "layers of the random model")
    vocab_size: int = option(32768, "its vocabulary")
    rounds: int = option(3, "interleaved rounds of each comparison")
    seed: int = option(0, "seed of weights and masks")

    @property
    def sizes(self) -> DemoSizes:
        return DemoSizes(shape_layers=self.layers, shape_vocab_size=self.vocab_size, seed=self.seed)

    @property
    def workload(self) -> Workload:
        return Workload(self.rounds, decode_steps=8, context_tokens=8, prefill_tokens=128)


@dataclass(frozen=True)
class LlamaShape:
    """A Llama of any size."""

    hidden: int = option(896, "hidden size")
    mlp: int = option(4864, "MLP units")
    layers: int = option(24, "layers")
    heads: int = option(14, "query heads of 64")
    kv_heads: int = option(2, "KV heads")
    vocab_size: int = option(32768, "vocabulary")
    rounds: int = option(5, "interleaved rounds")
    decode_steps: int = option(16, "decode steps in one timed run")
    seed: int = option(0, "seed of weights, masks and token ids")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        }
