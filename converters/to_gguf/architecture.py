"""Which architecture of llama.cpp computes a model exactly, and the widths of its layers there.

llama.cpp fixes the forward pass of each architecture in code, so what differs from it is refused:
https://github.com/ggml-org/llama.cpp/tree/master/src/models has one file for each.
"""

from dataclasses import dataclass, replace

from sgate_serve.architecture.family import (
    ATTENTION,
    CAUSAL_LM,
    KEY,
    MLP,
    QUERY,
    VALUE,
)
from sgate_serve.architecture.rope import DEFAULT_TYPE
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError

# Types of rope that turn each pair by a fixed angle per position.
ROPE_TYPES = (DEFAULT_TYPE, "linear", "llama3")
FAMILY_NAMES = "llama, mistral, phi3, qwen2, qwen3"


@dataclass(frozen=True)
class Architecture:
    """An architecture by its name in files (`general.architecture`).

    With `pairs_neighbours` it rotates dimensions 2i and 2i + 1 of a head together, where
    transformers pairs i with i + half, so rows of query and key are reordered for it; such a one
    also reads the tensor `rope_freqs`.
    """

    name: str
    pairs_neighbours: bool = False


LLAMA = Architecture("llama", pairs_neighbours=True)
# The only one whose layers may differ in widths and lack attention.
DECI = Architecture("deci", pairs_neighbours=True)
QWEN2 = Architecture("qwen2")
QWEN3 = Architecture("qwen3")


@dataclass(frozen=True)
class FileLayer:
    """A layer of a file: the model's layer `index` with the widths that the file has for it.

    Heads and units that the model's layer lacks are zero, and add exactly nothing.
    """

    index: int
    shape: LayerShape


def check_family(spec: ModelSpec) -> None:
    """Raise PlanError, naming the obstacle, for a model that no architecture here computes."""
    family, what = spec.family, f"--to gguf: family {spec.family.name}"
    if spec.task != CAUSAL_LM:
        raise PlanError(
            f"--to gguf: a {spec.head.model_class} is not a causal LM; leave out gguf, or give "
            "onnx, which every kind of model can be written in"
        )
    is_plain = family.residual == "pre" and family.norm == "rms" and not family.norm_offset
    is_plain = is_plain and not family.has_multipliers and family.mixture is None
    if not (is_plain and family.is_rotary and family.is_gated):
        raise PlanError(
            f"{what} is not written as GGUF (families that are: {FAMILY_NAMES}); leave out gguf, "
            "or convert the folder with convert_hf_to_gguf.py of llama.cpp if its layers are alike"
        )
    if spec.activation not in ("silu", "swish"):
        raise PlanError(
            f"{what} with hidden_act {spec.activation!r}: llama.cpp computes it as silu"
        )
    _check_rotation(spec, what)


def _check_rotation(spec: ModelSpec, what: str) -> None:
    rope = spec.ropes[0]
    if rope is None or any(other != rope for other in spec.ropes):
        raise PlanError(
            f"{what}: its layers rotate differently, for which llama.cpp has no architecture of "
            "uneven widths; leave out gguf"
        )
    if rope.rope_type not in ROPE_TYPES:
        raise PlanError(
            f"{what} with rope_type {rope.rope_type!r} is not written as GGUF (types that are: "
            f"{', '.join(ROPE_TYPES)}); leave out gguf"
        )
    if rope.rotated_share != 1:
        raise PlanError(
            f"{what}: {rope.rotated_share:.0%} of each head rotates, and llama.cpp rotates whole "
            "heads; leave out gguf"
        )
    if spec.family.head_norms and rope.rope_type != DEFAULT_TYPE:
        raise PlanError(
            f"{what} with rope_type {rope.rope_type!r}: llama.cpp's qwen3 turns pairs "
            "unscaled; leave out gguf"
        )


def file_layers(spec: ModelSpec, block: int) -> tuple[FileLayer, ...]:
    """Return the layers of a file in which `block` units of an MLP are stored together.

    Layers without any block are left out. llama.cpp drops the output of an attention without an
    MLP after it, and takes the width of all heads from the first layer: zero units and a zero head
    fill these in.
    """
    kept = [
        index for index, layer in enumerate(spec.layers) if layer.skipped_blocks != (ATTENTION, MLP)
    ]
    layers: list[FileLayer] = []
    for index in kept or [0]:
        shape = spec.layers[index]
        units = -(-max(shape.mlp_units, 1) // block) * block
        if not shape.num_heads and not layers:
            shape = replace(shape, num_heads=1, num_kv_heads=1)
        layers.append(FileLayer(index, replace(shape, mlp_units=units)))
    return tuple(layers)


def architecture_of(spec: ModelSpec, layers: tuple[FileLayer, ...]) -> Architecture:
    """Return the architecture for these layers; raise PlanError, naming the obstacle, without one.

    `check_family` must have passed.
    """
    _check_widths(spec, layers)
    first = layers[0].shape
    is_uniform = all(layer.shape == first for layer in layers)
    if spec.family.head_norms:
        _check_normed_heads(spec, is_uniform)
        return QWEN3
    if not is_uniform:
        return DECI
    is_square = first.num_heads * first.head_dim == spec.hidden_size
    has_qwen2_biases = spec.biased_roles == {QUERY, KEY, VALUE} and not spec.extra_biases
    rope = spec.ropes[0]
    is_scaled = rope is not None and rope.rope_type != DEFAULT_TYPE
    return QWEN2 if is_square and has_qwen2_biases and not is_scaled else LLAMA


def _check_widths(spec: ModelSpec, layers: tuple[FileLayer, ...]) -> None:
    if spec.family.head in spec.extra_biases:
        raise PlanError(
            f"--to gguf: {spec.family.head} got a bias, which llama.cpp does not add; leave out "
            "gguf"
        )
    widths = {layer.shape.head_dim for layer in layers if layer.shape.num_heads}
    if len(widths) > 1:
        raise PlanError(
            f"--to gguf: heads are {' and '.join(map(str, sorted(widths)))} wide, and llama.cpp "
            "has one width; leave out gguf"
        )


def _check_normed_heads(spec: ModelSpec, is_uniform: bool) -> None:
    """Refuse what llama.cpp's qwen3 cannot hold: it alone has norms on query and key."""
    family = spec.family.name
    if not is_uniform:
        raise PlanError(
            f"--to gguf: layers of family {family} have different widths here, for which llama.cpp "
            "has no architecture with norms on query and key; add --uniform, or leave out gguf"
        )
    if spec.norm_size != spec.hidden_size:
        raise PlanError(
            f"--to gguf: the residual stream lost dimensions, and in llama.cpp the norms of family "
            f"{family} share one epsilon; leave out gguf"
        )
    biased = {*spec.biased_roles, *spec.extra_biases}
    if biased:
        raise PlanError(
            f"--to gguf: {min(biased)} has a bias, which llama.cpp's qwen3 does not add; leave out "
            "gguf"
        )
