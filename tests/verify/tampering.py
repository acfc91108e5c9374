"""Changes to a converted folder: other functions or other files than the certified ones."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.numpy import load_file, save_file

from sgate_serve.onnx_format.names import GRAPH_FILE, META_WEIGHTS_DIGEST, WEIGHTS_FILE
from sgate_serve.plan import PLAN_FILE

Change = Callable[[Path], None]


def config(**fields: Any) -> Change:
    """Set fields of config.json; a function gets the old config."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        old: Mapping[str, Any] = json.loads(path.read_text())
        new = {key: value(old) if callable(value) else value for key, value in fields.items()}
        path.write_text(json.dumps({**old, **new}))

    return change


def without(*keys: str) -> Change:
    """Remove fields of config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        old = json.loads(path.read_text())
        path.write_text(json.dumps({key: old[key] for key in old if key not in keys}))

    return change


def companion(name: str, text: str) -> Change:
    """Write a file next to the weights."""

    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def graph_weight(name: str, rows: int | slice | tuple[int, int], amount: float = 1.0) -> Change:
    """Add to rows of a weight of the graph, with a record that fits, as a wrong converter would."""

    def change(folder: Path) -> None:
        path = folder / "onnx" / GRAPH_FILE
        graph = ir.load(path)
        (found,) = (key for key in graph.graph.initializers if name in key)
        stored = graph.graph.initializers[found].const_value
        assert isinstance(stored, ir.ExternalTensor) and stored.offset is not None
        array = stored.numpy().copy()
        array[rows] += array.dtype.type(amount)
        content = bytearray((path.parent / WEIGHTS_FILE).read_bytes())
        content[stored.offset : stored.offset + array.nbytes] = array.tobytes()
        stored.release()
        (path.parent / WEIGHTS_FILE).write_bytes(content)
        graph.metadata_props[META_WEIGHTS_DIGEST] = hashlib.sha256(content).hexdigest()
        ir.save(graph, path)

    return change


def graph_attribute(operator: str, name: str, value: float) -> Change:
    """Set an attribute of the first node of an operator."""

    def change(folder: Path) -> None:
        path = folder / "onnx" / GRAPH_FILE
        graph = ir.load(path)
        node = next(node for node in graph.graph if node.op_type == operator)
        node.attributes.add(ir.convenience.convert_attribute(name, value))
        ir.save(graph, path)

    return change


def graph_metadata(key: str, value: str | None = None) -> Change:
    """Set a key of the graph's metadata, or remove it."""

    def change(folder: Path) -> None:
        path = folder / "onnx" / GRAPH_FILE
        graph = ir.load(path)
        del graph.metadata_props[key]
        if value is not None:
            graph.metadata_props[key] = value
        ir.save(graph, path)

    return change


def tensor(name: str, row: int, amount: float) -> Change:
    """Add to one row of a stored tensor."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors[name][row] += np.float32(amount)
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def further_tensor(name: str, source: str) -> Change:
    """Store one more tensor, twice another one."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        save_file(tensors | {name: 2 * tensors[source]}, path, metadata={"format": "pt"})

    return change


def without_tensor(name: str) -> Change:
    """Store one tensor less."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def plan_of_another_base(folder: Path) -> None:
    path = folder / PLAN_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_fingerprint": "0" * 64}))


def no_plan(folder: Path) -> None:
    (folder / PLAN_FILE).unlink()


def both(first: Change, second: Change) -> Change:
    def change(folder: Path) -> None:
        first(folder)
        second(folder)

    return change
