"""Fits a config to the stored tensors where transformers does: tied heads, poolers, unused tensors.

The config says what a model's class builds, the files what was saved. Where both are right and
differ, the rules here are those of transformers 5.19 (`PreTrainedModel.tie_weights`,
`_load_pretrained_model`); a test compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sgate_serve.architecture.config_field import TIED_KEY
from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import BASE, KEY, VALUE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, TensorInfo

FURTHER_LAYERS = "num_mtp_layers"
# Values compared at a time: both tensors are mapped, and most differ early.
COMPARED = 2**22


@dataclass(frozen=True)
class Fitted:
    """A spec and a config that describe the tensors; `notes` say in words what was decided."""

    config: Mapping[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...] = ()


def fit(config: Mapping[str, Any], spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> Fitted:
    """Apply every rule; no tensor is read but a tied head that is stored next to its embedding."""
    fitted = Fitted(config, spec, tensors)
    return _fit_pooler(_fit_head(fitted) if spec.tied_head else fitted)


def further_layers(config: Mapping[str, Any], spec: ModelSpec) -> int:
    """Return how many layers after the last the files may have, which predict further tokens."""
    return ConfigReader(config, CONFIG_FILE, spec.family).integer(FURTHER_LAYERS, 0)


def is_unused(name: str, spec: ModelSpec, num_further: int = 0) -> bool:
    """Say whether a tensor is outside the stack and is not on top of it for this task.

    transformers leaves such tensors out: heads of other tasks, a value head, as many layers after
    the last as predict further tokens, and keys and values of layers that read those of others.
    """
    if name in unread_keys(spec):
        return True
    family, last = spec.family, len(spec.layers)
    further = (f"{family.layer_name(last + number)}." for number in range(num_further))
    if name.startswith(tuple(further)):
        return True
    on_top = {name for head in family.tasks.values() for name in head.tensors}
    return name in on_top or not name.startswith(f"{family.prefix}.")


def unread_keys(spec: ModelSpec) -> set[str]:
    """Return the tensors of keys and values that layers would have if these were their own."""
    family, found = spec.family, set[str]()
    for index, layer in enumerate(spec.layers):
        if not layer.has_keys:
            modules = [family.linear(index, role) for role in (KEY, VALUE)]
            modules += [f"{family.layer_name(index)}.{norm}" for norm in family.head_norms[1:]]
            found |= {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    return found


def _fit_head(fitted: Fitted) -> Fitted:
    """Untie a head that has other values than the embedding; use it as the embedding if alone."""
    spec, tensors = fitted.spec, fitted.tensors
    head_name, table_name = f"{spec.family.head}.weight", f"{spec.family.embedding}.weight"
    head, table = tensors.get(head_name), tensors.get(table_name)
    if head is None:
        return fitted
    if table is None:
        others = {name: info for name, info in tensors.items() if name != head_name}
        return replace(fitted, tensors={table_name: head, **others})
    if have_same_values(head, table):
        return fitted
    note = (
        f"{head_name} has other values than the embedding, so it is not tied, though config.json "
        f"says {TIED_KEY}: that is how transformers loads it"
    )
    return Fitted(
        {**fitted.config, TIED_KEY: False}, replace(spec, tied_head=False), tensors, (note,)
    )


def _fit_pooler(fitted: Fitted) -> Fitted:
    spec, names = fitted.spec, fitted.spec.head.tensors
    if spec.task != BASE or not names or any(name in fitted.tensors for name in names):
        return fitted
    note = "no pooler is stored: only the states of tokens are the model's"
    return replace(fitted, spec=replace(spec, lacks_pooler=True), notes=(*fitted.notes, note))


def have_same_values(one: TensorInfo, other: TensorInfo) -> bool:
    """Compare two tensors as `torch.equal` does, in a type that rounds neither."""
    if one.shape != other.shape:
        return False
    left, right = one.read().reshape(-1), other.read().reshape(-1)
    for start in range(0, left.size, COMPARED):
        a, b = left[start : start + COMPARED], right[start : start + COMPARED]
        if a.dtype == b.dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8)):
            continue
        if not np.array_equal(a.astype(np.float64), b.astype(np.float64)):
            return False
    return True
