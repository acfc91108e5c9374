"""Says what a file or folder is that is not a model folder, and the one line that makes it one.

Nothing is converted here: pickles are never read, and merging or dequantizing is another tool's
work. Every answer ends a sentence that names the path.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from sgate_serve.checkpoint.writer import STAGING_DIR

ADAPTER_CONFIG = "adapter_config.json"
GATES_FILES = ("gates.safetensors", "deltas.safetensors")
GATES_REMEDY = (
    "give their base here, and the gates with --gates; what has no --gates takes the folder that "
    "`sgate convert BASE --gates GATES --out OUT` writes"
)
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FOREIGN_WEIGHTS = ("tf_model.h5", "flax_model.msgpack")
GATE_ADAPTER = "FINEGATES"
# By PEFT's `task_type`.
AUTO_CLASSES: Mapping[str, str] = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "FEATURE_EXTRACTION": "AutoModel",
}
# A folder of checkpoints may have thousands of entries.
MAX_NAMED = 3


def describe_file(path: Path) -> str:
    """Return what a file is that was given as a model, and what to give instead."""
    if path.suffix == ".gguf":
        return f"{path} is a GGUF file, which is not read here; {gguf_remedy(path)}"
    if path.name in GATES_FILES:
        return f"{path} holds gates; {GATES_REMEDY}"
    if path.name.startswith("adapter_model"):
        return f"{path} is an adapter; {merge_remedy(path.parent)}"
    if (path.parent / CONFIG_FILE).is_file():
        return f"{path} is a file; give the model folder that holds it: {path.parent}"
    return f"{path} is a file; give the model folder that holds it, with {CONFIG_FILE}"


def describe_folder(folder: Path) -> str:
    """Return what a folder without config.json is, and what to give instead."""
    if (folder / ADAPTER_CONFIG).is_file():
        return f"{folder} is {adapter_kind(folder)}; {merge_remedy(folder)}"
    if (folder / GATES_FILES[0]).is_file():
        return f"{folder} is a gates folder; {GATES_REMEDY}"
    gguf = _first(folder, "*.gguf")
    if gguf is not None:
        return f"{folder} holds GGUF, which is not read here; {gguf_remedy(gguf)}"
    if (folder / "params.json").is_file():
        return (
            f"{folder} has the original layout of a Llama or Mistral release (params.json); give "
            "the one for transformers, with config.json and model.safetensors"
        )
    if (folder / "model.onnx").is_file():
        return f"{folder} is a graph alone; give the model folder that it was built from"
    inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    # The modules of sentence-transformers have such files too.
    models = [path for path in inside if "model_type" in _read(path / CONFIG_FILE)]
    if models:
        return f"give one of the models inside {folder}: {_listed(models)}"
    return f"is {folder} a model folder?"


def describe_missing_weights(folder: Path) -> str:
    """Return which weights a folder without `model.safetensors` and index holds instead."""
    if (folder / STAGING_DIR).is_dir():
        return "the command that wrote it was interrupted; run it again"
    if any((folder / name).is_file() for name in PICKLES):
        return f"a pickle ({PICKLES[0]}) may run code and is not read; {resave_remedy(folder)}"
    gguf = _first(folder, "*.gguf")
    if gguf is not None:
        return f"GGUF is not read here; {gguf_remedy(gguf)}"
    shard = _first(folder, "model-*-of-*.safetensors")
    if shard is not None:
        return f"{shard.name} is there without the index; download or copy {INDEX_FILE} too"
    other = _first(folder, "*.safetensors")
    if other is not None:
        return f"if {other.name} holds all weights, rename it to {SINGLE_FILE}"
    foreign = [name for name in FOREIGN_WEIGHTS if (folder / name).is_file()]
    if foreign:
        return (
            f"{foreign[0]} is not read; load it in transformers 4 (from_tf or from_flax) and save "
            "it from there"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return f"it is {adapter_kind(folder)}; {merge_remedy(folder)}"
    return "sgate reads safetensors checkpoints only; download or copy the weights too"


def adapter_kind(folder: Path) -> str:
    """Return the kind of the adapter in a folder, in words."""
    config = _read(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    return f"a PEFT adapter ({config.get('peft_type')}{f' of {base}' if base else ''})"


def merge_remedy(folder: Path) -> str:
    """Return how an adapter is merged into its base, or given as gates if it is one of gates."""
    config = _read(folder / ADAPTER_CONFIG)
    if config.get("peft_type") == GATE_ADAPTER:
        return "give its base here, and the folder of the adapter with --gates"
    base = config.get("base_model_name_or_path") or "BASE"
    return f"merge it first: {_merge_line(str(base), str(folder), config.get('task_type'))}"


def merge_beside_remedy(folder: Path) -> str:
    """Return how an adapter is merged that is in its base's own folder.

    transformers cannot load that base without it, so it must be moved before.
    """
    config = _read(folder / ADAPTER_CONFIG)
    if config.get("peft_type") == GATE_ADAPTER:
        return "move the adapter to a folder of its own and give that with --gates"
    line = _merge_line(str(folder), "ADAPTER", config.get("task_type"))
    files = f"{ADAPTER_CONFIG} and adapter_model.*"
    return f"merge it first: move {files} to a folder ADAPTER, then {line}"


def _merge_line(base: str, adapter: str, task: Any) -> str:
    auto = AUTO_CLASSES.get(str(task), "AutoModelForCausalLM")
    return (
        f'python -c "from peft import PeftModel as P; from transformers import {auto} as M; '
        f"P.from_pretrained(M.from_pretrained({base!r}), {adapter!r})"
        ".merge_and_unload().save_pretrained('MERGED')\""
    )


def resave_remedy(folder: Path, place: str | None = None) -> str:
    """Return the line that writes a folder's weights as safetensors, next to the others.

    `place` names the folder that the line works in, if it is not this one.
    """
    name, place = _model_class(folder), repr(place or str(folder))
    return (
        f'write them as safetensors once: python -c "from transformers import {name} as M; '
        f'M.from_pretrained({place}).save_pretrained({place})"'
    )


def gguf_remedy(file: Path) -> str:
    """Return the command that writes a GGUF file as a model folder."""
    return f"`sgate convert {file} --out NEW` writes it as a folder; give that"


def _model_class(folder: Path) -> str:
    names = _read(folder / CONFIG_FILE).get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) and name.isidentifier() else "AutoModelForCausalLM"


def _first(folder: Path, pattern: str) -> Path | None:
    return min(folder.glob(pattern), default=None)


def _listed(paths: list[Path]) -> str:
    more = len(paths) - MAX_NAMED
    return ", ".join(map(str, paths[:MAX_NAMED])) + (f" and {more} more" if more > 0 else "")


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object, {} for anything that is not one: this module only looks for hints."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
