"""From the names of tensors in files to those of a model with a head, which are used elsewhere."""

from collections.abc import Mapping
from typing import Any

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import Family
from sgate_serve.architecture.sgate_config import stored_family
from sgate_serve.architecture.text_part import TextPart
from sgate_serve.architecture.wholes import Whole, wholes_of
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
            raise _doubled(info, found[own], own)
        found[own] = info
    return unstacked(found, family, config.get("model_type"))


def text_tensors(tensors: Mapping[str, TensorInfo], part: TextPart) -> dict[str, TensorInfo]:
    """Return the tensors of the text in a folder, by the names of a model of text alone.

    transformers' class of the text alone reads files of some wholes too. Raises CheckpointError for
    a tensor of the stack that is not named as the whole's class wants it.
    """
    if part.whole is None:
        alone = (one for one in wholes_of(str(part.config.get("model_type"))) if one.is_read_alone)
        for whole in alone:
            tensors = _renamed(tensors, whole)
        return dict(tensors)
    family = FAMILIES[part.whole.family]
    for name, info in tensors.items():
        is_known = part.whole.has_text(name) or part.whole.has_other(name)
        if not is_known and canonical_name(name, family).startswith(f"{family.prefix}."):
            raise CheckpointError(
                f"{info.file}: tensor {name} is not part of a {part.whole.model_class}, whose text "
                f"has names like {next(iter(part.whole.names))}…; save the model from transformers"
            )
    return _renamed(tensors, part.whole)


def mask_names(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Mapping[str, TensorInfo]:
    """Return tensors of masks by the names of a model with a head, and of text alone.

    Tools that gate a whole name its modules, whatever transformers reads.
    """
    for whole in wholes_of(str(stored_family(config))):
        tensors = _renamed(tensors, whole)
    return canonical_names(tensors, config)


def left_out(tensors: Mapping[str, TensorInfo], whole: Whole | None) -> list[str]:
    """Say how many tensors of a whole are no text, and how large they are, if there are any."""
    if whole is None:
        return []
    others = [info.num_bytes for name, info in tensors.items() if whole.has_other(name)]
    if not others:
        return []
    return [
        f"the text part of a {whole.model_type} model is read; {len(others)} tensors of images or "
        f"sound ({sum(others):,} bytes) are left out"
    ]


def _renamed(tensors: Mapping[str, TensorInfo], whole: Whole) -> dict[str, TensorInfo]:
    found = dict[str, TensorInfo]()
    for name, info in tensors.items():
        own = whole.text_name(name)
        if own in found:
            raise _doubled(info, found[own], own)
        if not whole.has_other(name):
            found[own] = info
    return found


def canonical_name(name: str, family: Family) -> str:
    """Return the name that a tensor of a file has in a model with a head."""
    ending = next((old for old in family.renames if name.endswith(old)), None)
    own = name if ending is None else name.removesuffix(ending) + family.renames[ending]
    # Saved as a class of transformers holds it, a mixture may have the names of that.
    for files, stock in ({} if family.mixture is None else family.mixture.renames).items():
        own = own.replace(f".{stock}.", f".{files}.")
    return f"{family.prefix}.{own}" if own.startswith(_stack_names(family)) else own


def _doubled(info: TensorInfo, other: TensorInfo, own: str) -> CheckpointError:
    return CheckpointError(
        f"{info.file}: {info.name} and {other.name} are both {own}; keep one of them"
    )


def _stack_names(family: Family) -> tuple[str, ...]:
    """Return the beginnings of the stack's tensor names without the prefix."""
    on_top = {name for head in family.tasks.values() for name in head.tensors}
    names = (family.layer.format(""), *family.outside, *on_top)
    prefix = f"{family.prefix}."
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))
