"""A server on the real engine: a tiny random Llama with a tokenizer, converted to ONNX."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from converters.to_onnx import write_onnx
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.table import load_engine
from sgate_serve.server import ServedModel
from tests.server.live import serving, wait_until
from tests.small_llama import dense_llama, save
from tests.text_model import CHAT_TEMPLATE, EOS, write_tokenizer


def tiny_folder(folder: Path, chat_template: str = CHAT_TEMPLATE, **sizes: Any) -> Path:
    """Write the model, its tokenizer and its graph into an empty folder, and return it."""
    # In the form that transformers, the tokenizer of some clients, reads.
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    tokenizer = write_tokenizer(folder, chat_template=chat_template, **own)
    checkpoint = save(dense_llama(vocab_size=tokenizer.get_vocab_size(), **sizes), folder)
    (folder / "onnx").mkdir()
    write_onnx(checkpoint, folder / "onnx")
    return folder


@contextmanager
def serving_folder(folder: Path, slots: int, **options: Any) -> Iterator[httpx.Client]:
    """Run a server of the folder, ready when the block begins."""

    def load() -> ServedModel:
        engine = load_engine("onnx", folder / "onnx", SlotOptions(slots=slots, threads=1))
        return ServedModel.from_folder(engine, folder)

    with serving(load, **options) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client
