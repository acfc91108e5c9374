"""The sizes of single layers that configs of other tools state, in any of their layouts.

Transformers' `per_layer_config`, NVIDIA's `block_configs` and lists with one size per layer all
become `Claim` values. A layer that differs in anything but widths is refused by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from sgate_serve.architecture.family import ATTENTION, MLP
from sgate_serve.architecture.sgate_config import PER_LAYER, SKIP
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import INDICES, OBJECT, SIZE, WHOLE, Kind, check_fields, is_number

HEADS, KV_HEADS = "num_attention_heads", "num_key_value_heads"
HEAD_DIM, UNITS = "head_dim", "intermediate_size"
# Query heads per KV head; not a key of our own configs.
GROUP = "queries_per_kv"
BLOCK_SIZES: Mapping[str, tuple[str, ...]] = {ATTENTION: (HEADS, KV_HEADS), MLP: (UNITS,)}

BLOCK_CONFIGS = "block_configs"
# Lists with one size for each layer; a stock key may hold such a list too.
LISTS: Mapping[str, str] = {
    # github.com/alibaba/rtp-llm, docs of its sparse models
    "layer_head_num": HEADS,
    "layer_head_num_kv": KV_HEADS,
    "layer_inter_size": UNITS,
    "num_attention_heads_per_layer": HEADS,
    "num_key_value_heads_per_layer": KV_HEADS,
    "intermediate_size_per_layer": UNITS,
    "layer_intermediate_sizes": UNITS,
}
STOCK_LISTS: Mapping[str, str] = {size: size for size in (HEADS, KV_HEADS, UNITS)}
LAYER_LIST = Kind("a list of whole numbers, one per layer", INDICES.accepts)

# Keys inside `per_layer_config` and `block_configs`.
FFN_MULT = Kind(
    "a number above 0, at most 1000", lambda value: is_number(value) and 0 < value <= 1000
)
ENTRY_SIZES: Mapping[str, tuple[str, Kind]] = {
    **{size: (size, WHOLE) for size in (HEADS, KV_HEADS, UNITS)},
    HEAD_DIM: (HEAD_DIM, SIZE),
    "n_heads_in_group": (GROUP, SIZE),
    "ffn_mult": (UNITS, FFN_MULT),
}
SUBBLOCKS: Mapping[str, str] = {"attention": ATTENTION, "ffn": MLP}
SKIPPED: Mapping[str, str] = {"self_attn": ATTENTION, ATTENTION: ATTENTION, "ffn": MLP, MLP: MLP}
FFN_MULTIPLE = 256
# The tensors tell the first; the second is about storage only.
HARMLESS = frozenset({"gated", "weights_precision"})
# The meaning of a config without the key, where other tools repeat it for each layer.
DEFAULTS: Mapping[str, str] = {"hidden_act": "silu"}


@dataclass(frozen=True)
class Claim:
    """One size of one layer as the config states it, and the place where it does."""

    layer: int
    where: str
    size: str
    value: int

    @property
    def key(self) -> str:
        return self.where.partition("[")[0]


def claim_keys(config: Mapping[str, Any]) -> set[str]:
    """Return the keys of a config that describe single layers, in any of the layouts."""
    lists = {key for key in STOCK_LISTS if isinstance(config.get(key), list | tuple)}
    return lists | (config.keys() & {*LISTS, PER_LAYER, BLOCK_CONFIGS})


def read_claims(config: Mapping[str, Any], depth: int, hidden: int, source: str) -> Iterator[Claim]:
    """Yield the sizes of single layers that the config states; 0 means a block left out.

    Raises CheckpointError for values of a wrong type, and for layers that differ in anything else.
    """
    for key, size in {**LISTS, **STOCK_LISTS}.items():
        if config.get(key) is None or key not in claim_keys(config):
            continue
        check_fields(config, {key: LAYER_LIST}, source, CheckpointError)
        _check_length(config[key], depth, f"{source}: {key}")
        for layer, value in enumerate(config[key]):
            yield Claim(layer, f"{key}[{layer}]", size, value)
    for layer, where, entry in _entries(config, depth, source):
        reader = _Entry(config, hidden, source)
        reader.read(entry, where)
        for place, size, value in reader.sizes():
            yield Claim(layer, place, size, value)


def _entries(
    config: Mapping[str, Any], depth: int, source: str
) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Yield layer, place and content of each entry of `per_layer_config` and `block_configs`."""
    check_fields(config, {PER_LAYER: OBJECT}, source, CheckpointError)
    blocks = config.get(BLOCK_CONFIGS) or []
    if not isinstance(blocks, list):
        raise CheckpointError(f"{source}: {BLOCK_CONFIGS} must be a list, found {brief(blocks)}")
    if blocks:
        _check_length(blocks, depth, f"{source}: {BLOCK_CONFIGS}")
    for name, entries in (
        (PER_LAYER, config.get(PER_LAYER) or {}),
        (BLOCK_CONFIGS, dict(enumerate(blocks))),
    ):
        for key, entry in entries.items():
            where = f"{name}[{brief(key)}]".replace("'", "")
            # The length is checked before int(), which takes forever on a long string of digits.
            if not str(key).isdecimal() or len(str(key)) > 9 or int(key) >= depth:
                raise CheckpointError(f"{source}: {where} is not one of the {depth} layers")
            if not isinstance(entry, Mapping | None):
                raise CheckpointError(f"{source}: {where} must be an object, found {brief(entry)}")
            yield int(key), where, entry or {}


def _check_length(values: Any, depth: int, place: str) -> None:
    if len(values) != depth:
        raise CheckpointError(
            f"{place} has {len(values)} entries for {depth} layers; correct it or num_hidden_layers"
        )


class _Entry:
    """The sizes and skipped blocks of one layer, gathered from nested or flat keys."""

    def __init__(self, config: Mapping[str, Any], hidden: int, source: str) -> None:
        self.config, self.hidden, self.source = config, hidden, source
        self._sizes: list[tuple[str, str, int]] = []
        self._skipped: dict[str, str] = {}

    def sizes(self) -> Iterator[tuple[str, str, int]]:
        """Yield place, size and value; the stated sizes of a skipped block are ignored."""
        void = {size for block in self._skipped for size in BLOCK_SIZES[block]}
        void |= {GROUP} if ATTENTION in self._skipped else set()
        yield from (found for found in self._sizes if found[1] not in void)
        for block, where in self._skipped.items():
            yield from ((where, size, 0) for size in BLOCK_SIZES[block])

    def read(self, entry: Mapping[str, Any], where: str, block: str | None = None) -> None:
        for key, value in entry.items():
            place = f"{where}.{key}"
            if block is None and key in SUBBLOCKS and isinstance(value, Mapping):
                self.read(value, place, SUBBLOCKS[key])
            elif key in ENTRY_SIZES:
                self._read_size(entry, key, where)
            elif block is not None and key == "no_op" and value is True:
                self._skipped[block] = place
            elif key == SKIP:
                self._read_skip(value, place)
            elif self._differs(key, value, block):
                raise CheckpointError(
                    f"{self.source}: {place} is {brief(value)}; this release reads layers that "
                    "differ in their widths and in skipped blocks, nothing else"
                )

    def _differs(self, key: str, value: Any, block: str | None) -> bool:
        """Say whether a key other than a size sets the layer apart; a subblock's may be off."""
        usual = self.config.get(key) or DEFAULTS.get(key)
        is_off = value in (None, False, [], {}) and (block is not None or not usual)
        return not is_off and value != usual and key not in HARMLESS

    def _read_size(self, entry: Mapping[str, Any], key: str, where: str) -> None:
        size, kind = ENTRY_SIZES[key]
        check_fields(entry, {key: kind}, f"{self.source}: {where}", CheckpointError)
        value = entry[key]
        if value is not None:
            units = ffn_units(value, self.hidden) if key == "ffn_mult" else value
            self._sizes.append((f"{where}.{key}", size, units))

    def _read_skip(self, names: Any, place: str) -> None:
        if names is None:
            return
        if not isinstance(names, list) or any(str(name) not in SKIPPED for name in names):
            raise CheckpointError(
                f'{self.source}: {place} must be a list of "{ATTENTION}" and "{MLP}", found '
                f"{brief(names)}"
            )
        self._skipped |= {SKIPPED[name]: place for name in names}


def ffn_units(ffn_mult: float, hidden: int) -> int:
    """Return the MLP width of NVIDIA's DeciLM classes: 2/3 · ffn_mult · hidden, rounded up."""
    return -(-int(2 * ffn_mult * hidden / 3) // FFN_MULTIPLE) * FFN_MULTIPLE
