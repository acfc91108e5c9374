"""A causal language model, its text and the options of a run that takes a second."""

from pathlib import Path
from typing import Any

from sgate_serve.training import TrainOptions
from tests.small_llama import dense_llama, save
from tests.text_model import SENTENCES, write_tokenizer


def small_run(folder: Path, **options: Any) -> TrainOptions:
    """Write base and text to `folder`; return options that leave the result in `gates`."""
    save(dense_llama(vocab_size=400, intermediate_size=64, eos_token_id=1), folder / "base")
    write_tokenizer(folder / "base")
    text = folder / "text.txt"
    text.write_text("\f".join([*SENTENCES] * 12), encoding="utf-8")
    sizes: dict[str, Any] = {
        "batch_size": 2,
        "seq_len": 16,
        "lora_rank": 2,
        "eval_blocks": 4,
        "precision": "fp32",
    }
    return TrainOptions(
        base=str(folder / "base"), data=text, out=folder / "gates", **sizes, **options
    )
