"""docs/format.md says what becomes of every file and key that the reader knows."""

import re
from pathlib import Path

from sgate_serve.checkpoint.identity import WITHOUT_EFFECT
from sgate_serve.checkpoint.other_layouts import ADAPTER_CONFIG, FOREIGN_WEIGHTS, PICKLES
from sgate_serve.checkpoint.side_files import REDIRECTIONS
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE
from sgate_serve.onnx_format import names
from sgate_serve.text.generation_settings import GENERATION_FILE

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def test_every_file_and_key_is_named() -> None:
    named = set(re.findall(r"`([^`\n]+)`", PAGE))
    files = {ADAPTER_CONFIG, *FOREIGN_WEIGHTS, *PICKLES, INDEX_FILE, SINGLE_FILE, GENERATION_FILE}
    keys = {*WITHOUT_EFFECT, *REDIRECTIONS}
    metadata = {value for name, value in vars(names).items() if name.startswith("META_")}
    assert (files | keys | metadata) - named == set()


def test_every_file_that_transformers_reads_is_named() -> None:
    from transformers import utils

    constants = vars(utils).items()
    read = {value for name, value in constants if name.endswith("_NAME") and "." in str(value)}
    assert {"config.json", "model.safetensors", "adapter_config.json"} <= read
    assert {name for name in read if f"`{name}`" not in PAGE} == set()
