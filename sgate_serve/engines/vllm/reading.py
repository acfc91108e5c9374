"""Makes vLLM read a folder as transformers does, or refuses what it would read otherwise.

vLLM loads an index where a newer single file is there, and every safetensors file where no index
is. Not every version that is supported unties a head that is stored with its own values (0.32
does). The folder itself stays as it is.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE
from sgate_serve.errors import EngineError

OVERRIDES_FLAG = "--hf-overrides"


def config_overrides(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the keys of config.json that vLLM must read differently, with their values.

    Raises EngineError if `arguments` override the config too, and for other weights than those that
    transformers loads.
    """
    model = Checkpoint.open(folder)
    _check_files(model)
    if model.layout is not None:
        return {}
    stored = model.stored_config
    found = {key: value for key, value in model.config.items() if stored.get(key) != value}
    words = (word.partition("=")[0].replace("_", "-") for word in arguments)
    if found and OVERRIDES_FLAG in words:
        raise EngineError(
            f"{OVERRIDES_FLAG} would replace {json.dumps(found)}, which the weights of {folder} "
            "need; write that into its config.json"
        )
    return found


def _check_files(model: Checkpoint) -> None:
    """Raise EngineError for files of weights that vLLM would load instead or in addition."""
    read = {info.file for info in model.tensors.values()}
    index = model.folder / INDEX_FILE
    is_sharded = {file.name for file in read} != {SINGLE_FILE}
    strangers = {
        file
        for file in model.folder.glob("*.safetensors")
        if file not in read and (not is_sharded or file.name.startswith("consolidated"))
    }
    if index.exists() and not is_sharded:
        strangers.add(index)
    if strangers:
        raise EngineError(
            f"vLLM would read {min(strangers)}, which the model does not consist of; move it to "
            "another folder"
        )
