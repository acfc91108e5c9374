"""From the names of tensors in files to those of a model with a head, which are used elsewhere."""

from collections.abc import Mapping
from typing import Any

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import Family
from sgate_serve.architecture.sgate_config import stored_family
from sgate_serve.checkpoint.stacks import unstacked
from sgate_serve.checkpoint.tensor_files import TensorInfo
from sgate_serve.errors import CheckpointError


def canonical_names(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Mapping[str, TensorInfo]:
    """Return the tensors by the names of a model with a head, whatever the files call them.

    Base models are saved without the prefix of the stack, old checkpoints with other endings, and
    some mixtures with all experts of a layer in one. Names stay as they are if the config's family
    is not supported.
    """
    name = stored_family(config)
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        return tensors
    found = dict[str, TensorInfo]()
    for name, info in tensors.items():
        own = canonical_name(name, family)
        if own in found:
            raise CheckpointError(
                f"{info.file}: {name} and {found[own].name} are both {own}; keep one of them"
            )
        found[own] = info
    return unstacked(found, family, config.get("model_type"))


def canonical_name(name: str, family: Family) -> str:
    """Return the name that a tensor of a file has in a model with a head."""
    ending = next((old for old in family.renames if name.endswith(old)), None)
    own = name if ending is None else name.removesuffix(ending) + family.renames[ending]
    # Saved as a class of transformers holds it, a mixture may have the names of that.
    for files, stock in ({} if family.mixture is None else family.mixture.renames).items():
        own = own.replace(f".{stock}.", f".{files}.")
    return f"{family.prefix}.{own}" if own.startswith(_stack_names(family)) else own


def _stack_names(family: Family) -> tuple[str, ...]:
    """Return the beginnings of the stack's tensor names without the prefix."""
    on_top = {name for head in family.tasks.values() for name in head.tensors}
    names = (family.layer.format(""), *family.outside, *on_top)
    prefix = f"{family.prefix}."
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))
