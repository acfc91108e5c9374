"""A labelled task that a tiny model learns in a few steps, and models to learn it."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgate_serve.training import TrainOptions
from tests.families.zoo import ZOO, Variant, build
from tests.text_model import SENTENCES, write_tokenizer

# Wide enough for targets in steps of half a point.
WIDTHS: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 96},
    "llama": {"intermediate_size": 96, "num_hidden_layers": 2},
    "modernbert": {"intermediate_size": 96},
}


def write_model(folder: Path, family: str = "bert", kind: int = 0) -> Path:
    """Write a random model of the zoo, its tokenizer beside it; `kind` counts its variants."""
    variant: Variant = ZOO[family][kind]
    config = {**variant.config, "vocab_size": 400, "initializer_range": 0.05, **WIDTHS[family]}
    build(replace(variant, config=config), seed=0).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_examples(path: Path, count: int, *, labels: Any = ("cat", "gate"), seed: int = 0) -> Path:
    """Write shuffled words of one of two sentences, labelled by which."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        which = rng.randrange(2)
        words = rng.sample(SENTENCES[which].split(), 5)
        lines.append(json.dumps({"text": " ".join(words), "label": labels[which]}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# Of a dense model with a new head.
DENSE_STEPS = 40


def options_of(base: Path, data: Path, out: Path, **changes: Any) -> TrainOptions:
    options = TrainOptions(
        base=str(base),
        data=data,
        out=out,
        task="classification",
        method="gates",
        steps=16,
        batch_size=8,
        seq_len=24,
        gate_learning_rate=0.1,
        learning_rate=0.01,
        lora_rank=2,
        save_steps=50,
        precision="fp32",
    )
    options = replace(options, **changes)
    return replace(options, no_control="no_control" not in changes and options.has_control)
