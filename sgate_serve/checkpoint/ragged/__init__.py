"""Converts the config of a checkpoint whose layers another tool made uneven to our own config.

The shapes of the tensors decide, and what the config says about single layers must agree with them.
Ambiguous checkpoints are refused, such as one that fits two values of head_dim. Pure: nothing is
read from disk or logged. Layouts: docs/format.md.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgate_serve.architecture.config_schema import check_config
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import Family
from sgate_serve.architecture.sgate_config import LayerSizes, SgateBlock, sgate_config
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.checkpoint.ragged.claims import (
    BLOCK_SIZES,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    UNITS,
    Claim,
    claim_keys,
    read_claims,
)
from sgate_serve.checkpoint.ragged.mixtures import normalize_mixtures
from sgate_serve.checkpoint.ragged.widths import Headers, Sizes, StoredTensor, Widths
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import TEXTS

# Model types of remote code whose tensors are those of a stock family.
MODEL_TYPES: Mapping[str, str] = {"nemotron-nas": "llama", "deci": "llama"}
# Remote code is never run, so our configs do not name any.
LEFT_OUT = frozenset({"auto_map"})
SIZES = (HEADS, KV_HEADS, HEAD_DIM, UNITS)

# From a config, tensors and the file's name to a config that describes them, and the layout.
Normalize = Callable[
    [Mapping[str, Any], Mapping[str, StoredTensor], str], tuple[Mapping[str, Any], str | None]
]

__all__ = ["Normalize", "normalize_config"]


def normalize_config(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], source: str
) -> tuple[Mapping[str, Any], str | None]:
    """Return a config that describes the tensors, and in words the layout that they came in.

    A stock config that fits its tensors, and one of `model_type: sgate`, are returned unchanged,
    with None. `source` names the config's file. Raises CheckpointError if tensors contradict each
    other or the config, or leave a size ambiguous.
    """
    stored_type = str(config.get("model_type"))
    model_type = MODEL_TYPES.get(stored_type, stored_type)
    # Classes whose heads depend on the type of a layer read its sizes from the config themselves.
    if model_type not in FAMILIES or FAMILIES[model_type].has_heads_by_type:
        return config, None
    family = FAMILIES[model_type]
    if family.mixture is not None or family.recurrence is not None:
        check_config(config, source, family)
        return _normalize_kinds(config, family, tensors, source)
    stock = {key: value for key, value in config.items() if key not in claim_keys(config)}
    # Other tools write null for a size that each layer has of its own.
    stock = {key: value for key, value in stock.items() if value is not None or key not in SIZES}
    stock["model_type"] = model_type
    is_stock = stored_type == model_type
    check_config(stock, source, family)
    depth, hidden = stock.get("num_hidden_layers"), stock.get("hidden_size")
    if is_stock and not claim_keys(config):
        # Its class has a default for each size that the config leaves out.
        defaults = {size: _class_default(family, size) for size in SIZES if size not in config}
        stock = {size: default for size, default in defaults.items() if default} | stock
    elif not is_stock and not (depth and hidden):
        key = "hidden_size" if depth else "num_hidden_layers"
        raise CheckpointError(f"{source}: {key} must be a whole number, found None")
    headers = Headers(tensors, family, source)
    if not depth or not hidden or stock.get(HEAD_DIM) == 0:
        # The reader of the config reports what is wrong.
        return config if is_stock else stock, None
    if not headers.has_blocks(depth):
        return config if is_stock else stock, None
    if HEAD_DIM not in family.fields and headers.has_whole_heads(depth, hidden):
        # transformers does not read it in such a family.
        stock.pop(HEAD_DIM, None)
    claims = list(read_claims(config, depth, hidden, source))
    layers = _layer_sizes(stock, headers, claims)
    for claim in claims:
        headers.check(claim, layers[claim.layer])
    biases = list(headers.added_biases(stock, depth))
    dense = _dense_sizes(stock, family)
    fits = all(layer == dense for layer in layers)
    if fits and is_stock and not claims:
        headers.check_none_added(biases)
        return config, None
    words = f"{stored_type} checkpoint, {_in_words(claims, layers, biases, dense)}"
    return _sgate_config(stock, family, layers, biases), words


def _normalize_kinds(
    config: Mapping[str, Any], family: Family, tensors: Mapping[str, StoredTensor], source: str
) -> tuple[Mapping[str, Any], str | None]:
    """Return a config of a family whose layers are of several kinds, and its layout.

    Where some are recurrent, sizes of single layers are refused; the tensors count the experts.
    """
    keys = sorted(claim_keys(config))
    if keys and family.recurrence is not None:
        raise CheckpointError(
            f"{source}: {keys[0]} with family {family.name}: sizes of single layers are not read "
            "where some layers are recurrent; convert the dense checkpoint with a mask"
        )
    if family.mixture is not None:
        return normalize_mixtures(config, family, tensors, source)
    return config, None


def _in_words(
    claims: Sequence[Claim], layers: Sequence[Sizes], biases: Sequence[str], dense: Sizes
) -> str:
    keys = ", ".join(sorted({claim.key for claim in claims})) or "the tensor shapes"
    gone = sum(not layer[keys[0]] for layer in layers for keys in BLOCK_SIZES.values())
    notes = [f"{gone} blocks are gone"] if gone else []
    notes += [f"{len(biases)} biases are not the family's"] if biases else []
    if not claims and all(layer == layers[0] for layer in layers):
        # A number in the config that fits no layer is more likely wrong than the layers pruned.
        notes += [
            f"{size} is {found} in every layer and {dense[size]} in config.json"
            for size, found in layers[0].items()
            if dense[size] not in (found, 0)
        ]
    return f"sizes of each layer from {keys}" + (f" ({', '.join(notes)})" if notes else "")


def _class_default(family: Family, size: str) -> int:
    """Return the size that a config of the family has without stating it; 0 if it follows."""
    field = family.fields.get(size)
    return (None if field is None else field.default) or 0


def _dense_sizes(stock: Mapping[str, Any], family: Family) -> Sizes:
    """Return the sizes that a config without overrides gives every layer; 0 if it gives none."""
    heads = stock.get(HEADS) or 0
    default = _class_default(family, HEAD_DIM) or stock["hidden_size"] // max(heads, 1)
    return {
        HEADS: heads,
        KV_HEADS: (stock.get(KV_HEADS) if family.has_kv_heads else None) or heads,
        HEAD_DIM: stock.get(HEAD_DIM) or default,
        UNITS: stock.get(UNITS) or 0,
    }


def _layer_sizes(
    stock: Mapping[str, Any], headers: Headers, claims: Sequence[Claim]
) -> list[Sizes]:
    """Read each layer; head_dim comes from the config, the head norms or the stated head count."""
    depth = stock["num_hidden_layers"]
    widths = [headers.widths(layer) for layer in range(depth)]
    claimed = {claim.layer: claim.value for claim in claims if claim.size == HEAD_DIM}
    heads = {claim.layer: claim.value for claim in claims if claim.size == HEADS and claim.value}
    implied = [
        headers.head_norm(layer) or (widths[layer].query // heads[layer] if layer in heads else 0)
        for layer in range(depth)
    ]
    known = [claimed.get(layer) or stock.get(HEAD_DIM) or implied[layer] for layer in range(depth)]
    default = 0
    if not all(known):
        default = next(filter(None, implied), 0) or _class_default(headers.family, HEAD_DIM)
        default = default or _dense_head_dim(stock, headers.family, widths, headers.source)
    return [headers.sizes(layer, widths[layer], known[layer] or default) for layer in range(depth)]


def _dense_head_dim(
    stock: Mapping[str, Any], family: Family, widths: Sequence[Widths], source: str
) -> int:
    """Return hidden size / heads if that is unambiguous; raise CheckpointError otherwise.

    Tools that cut heads may keep the dense number of heads in the config, or write the number that
    is left. The two may give different values of head_dim that both fit.
    """
    hidden, heads = stock["hidden_size"], stock.get(HEADS) or 0
    widest = max(width.query for width in widths)
    whole = {size // heads for size in (hidden, widest) if heads and size and size % heads == 0}
    fitting = sorted(
        size for size in whole if all(w.query % size == w.kv % size == 0 for w in widths)
    )
    if not whole and HEAD_DIM not in family.fields:
        raise CheckpointError(
            f"{source}: {HEADS} is {heads}, and hidden_size {hidden} is not a multiple of it, as "
            f"family {family.name} has it; correct one of them"
        )
    if len(fitting) > 1 or not whole:
        sizes = " or ".join(map(str, fitting))
        raise CheckpointError(
            f"{source} lacks head_dim, and with query projections of at most {widest} rows it "
            f"{f'could be {sizes}' if sizes else 'cannot be told'}: add head_dim to the config"
        )
    return (fitting or sorted(whole))[0]


def _sgate_config(
    stock: Mapping[str, Any], family: Family, layers: Sequence[Sizes], biases: Sequence[str]
) -> dict[str, Any]:
    """Return our own config that describes the tensors."""
    shapes = tuple(
        LayerShape(layer[HEADS], layer[KV_HEADS], layer[HEAD_DIM], layer[UNITS]) for layer in layers
    )
    sizes = LayerSizes(family, shapes, stock["hidden_size"], stock["hidden_size"])
    config = {key: value for key, value in stock.items() if key not in LEFT_OUT}
    # The top level needs sizes even for a block that no layer has.
    dense = _dense_sizes(stock, family)
    config |= {size: dense[size] or 1 for size in (HEADS, UNITS) if not stock.get(size)}
    config |= sizes.top_level()
    config["architectures"] = _architectures(stock, family)
    block = SgateBlock(family.name, stock["model_type"], extra_biases=frozenset(biases))
    return sgate_config(config, sizes, block)


def _architectures(stock: Mapping[str, Any], family: Family) -> list[str]:
    """Return the stock classes that the config names, or the family's default one."""
    names: Any = stock.get("architectures")
    classes = {head.model_class for head in family.tasks.values()}
    known = [name for name in names if name in classes] if TEXTS.accepts(names) else []
    return known or [family.tasks[family.default_task].model_class]
