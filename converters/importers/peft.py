"""FINEGATES adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.finegates_rows` [out] and `.finegates_columns` [in], logits
(https://github.com/huggingface/peft/pull/3517). Biases trained together with the gates belong to
the wrapped linear; they and `modules_to_save` are stored as whole tensors.
"""

from converters.importers.logits import ForeignGates, to_gates
from converters.importers.source import GatesSource
from sgate_serve.checkpoint.names import mask_names
from sgate_serve.checkpoint.other_layouts import ADAPTER_CONFIG
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import TensorInfo
from sgate_serve.errors import CheckpointError, GatesError
from sgate_serve.gates import Gates
from sgate_serve.json_fields import read_json

TITLE = "PEFT FINEGATES adapter"
FILES = ("adapter_model.safetensors",)
# Their suffixes of gate names, and ours.
SIDES = {".finegates_rows": ".rows", ".finegates_columns": ".columns"}
MARKS = tuple(SIDES)
PREFIX = "base_model.model."
PEFT_TYPE = "FINEGATES"


def read(source: GatesSource, base: Checkpoint) -> Gates:
    """Return the adapter's gates; its other tensors replace the base's tensors of the same name.

    Raises GatesError for an adapter of another type, and for gates that do not fit `base`.
    """
    check_config(source)
    found = ForeignGates(TITLE, source.location)
    for name, info in mask_names(_own_names(source), base.config).items():
        mark = next(filter(name.endswith, MARKS), None)
        if mark is not None:
            found.logits[name.removesuffix(mark) + SIDES[mark]] = info
        else:
            module, _, last = name.rpartition(".")
            found.add_delta(f"{module.removesuffix('.base_layer')}.{last}", info)
    return to_gates(found, base)


def _own_names(source: GatesSource) -> dict[str, TensorInfo]:
    """Return the tensors under the names that the wrapped model gives them."""
    for name, info in source.tensors.items():
        if not name.startswith(PREFIX):
            raise GatesError(
                f"{info.file}: {name} does not start with {PREFIX}; save the adapter with PEFT's "
                "save_pretrained"
            )
    return {name.removeprefix(PREFIX): info for name, info in source.tensors.items()}


def check_config(source: GatesSource) -> None:
    """Raise GatesError unless the adapter's config says that its type is FINEGATES."""
    file = source.folder / ADAPTER_CONFIG
    if not file.exists():
        raise GatesError(f"{file} is missing; copy it from where the adapter was saved")
    try:
        found = read_json(file).get("peft_type")
    except CheckpointError as error:
        raise GatesError(str(error)) from error
    if found != PEFT_TYPE:
        raise GatesError(
            f"{file}: peft_type {found!r}, expected {PEFT_TYPE!r}; only gate adapters can "
            "be converted to a smaller model"
        )
