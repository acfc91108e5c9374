"""Mixtures of experts: what each layer's router, biases and experts say of their number.

An expert is a module of its own (`experts.3.up_proj.weight`), or all experts of a layer are one
tensor (`experts.gate_up_proj` [experts, …]). A router has one row for each expert.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sgate_serve.checkpoint.outline.config import (
    EXPERT_UNITS,
    EXPERTS_PER_TOKEN,
    NUM_EXPERTS,
    AnyConfig,
)
from sgate_serve.checkpoint.outline.faults import Fault, gaps
from sgate_serve.checkpoint.outline.layers import LAYER
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, TensorInfo

Tensors = Mapping[str, TensorInfo]

EXPERT = re.compile(
    r"(?P<block>.+)\.experts\.(?P<number>\d+)\.(?P<part>[a-z0-9_]+)\.(?P<kind>weight|weight_packed)"
)
STACKED = re.compile(
    r"(?P<block>.+)\.(?:experts\.[a-z_]+(?:\.weight)?|(?<=moe\.)(?:in|out)put_linear\.weight)"
)
ROUTER = re.compile(
    r"(?P<block>.+?)\.(?:gate|router)(?:\.(?:gate|wg|layer|proj|classifier))?\.weight"
)
BIAS = re.compile(
    r"(?P<block>.+?)\.(?:(?:gate|router|moe_statics)\.)?"
    r"(?:e_score_correction_bias|expert_bias|bias|per_expert_scale|classifier\.bias)"
)
# The matrices of an expert with a row for each of its units.
READS_INPUT = frozenset({"gate_proj", "up_proj", "w1", "w3", "linear_fc1"})


@dataclass
class Mixture:
    """The experts of one block: their numbers, units and router, as the headers have them."""

    numbers: set[int] = field(default_factory=set)
    # By the name of a stack inside the block, how many experts it holds.
    stacks: dict[str, int] = field(default_factory=dict)
    units: set[int] = field(default_factory=set)
    router_rows: int | None = None
    biases: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of experts, those that are missing between others included."""
        return max((*self.stacks.values(), *(number + 1 for number in self.numbers)))


def mixtures_of(tensors: Tensors) -> dict[str, Mixture]:
    """Return block name → mixture, in the order of the headers."""
    found: dict[str, Mixture] = defaultdict(Mixture)
    for name, info in tensors.items():
        if match := EXPERT.fullmatch(name):
            mixture = found[match["block"]]
            mixture.numbers.add(int(match["number"]))
            if match["part"] in READS_INPUT and match["kind"] == "weight" and info.shape:
                mixture.units.add(info.shape[0])
        elif (match := STACKED.fullmatch(name)) and len(info.shape) > 1:
            own = name.removeprefix(f"{match['block']}.")
            found[match["block"]].stacks[own] = info.shape[0]
    _add_routers(found, tensors)
    return dict(found)


def _add_routers(found: Mapping[str, Mixture], tensors: Tensors) -> None:
    for name, info in tensors.items():
        if ".experts." in name or not info.shape:
            continue
        if (match := ROUTER.fullmatch(name)) and match["block"] in found:
            found[match["block"]].router_rows = info.shape[0]
        elif (match := BIAS.fullmatch(name)) and match["block"] in found:
            found[match["block"]].biases[name] = info.shape[-1]


def mixture_faults(config: AnyConfig, mixtures: Mapping[str, Mixture]) -> Iterator[Fault]:
    """Yield what contradicts itself inside a mixture, or contradicts the config."""
    for block, mixture in mixtures.items():
        yield from (Fault(block, how) for how in _within(mixture, config))
        stated = _of_block(config, block)
        if stated is None:
            yield from (Fault(block, how) for how in _against(mixture, config))
        elif stated != mixture.size:
            yield Fault(block, f"it has {mixture.size} experts, but block_configs says {stated}")
    if mixtures:
        yield from _choice_faults(config, min(mixture.size for mixture in mixtures.values()))


def _within(mixture: Mixture, config: AnyConfig) -> Iterator[str]:
    size = mixture.size
    if not mixture.stacks and (missing := gaps(mixture.numbers, size)):
        yield f"of {size} experts there are no tensors of {missing}; number them anew"
    for stack, own in mixture.stacks.items():
        if own != size:
            yield f"{stack} holds {own} experts, and another stack {size}; keep the same in all"
    if len(mixture.units) > 1:
        yield (
            f"its experts have {min(mixture.units)} to {max(mixture.units)} units; stock engines "
            "take one size"
        )
    idle = _idle_experts(config)
    rows = mixture.router_rows
    if rows is not None and rows not in (size, size + idle):
        yield f"its router has {rows} rows for {size} experts; keep the rows of the kept experts"
    for name, length in mixture.biases.items():
        if length not in (size, size + idle):
            yield (
                f"{name.rpartition('.')[2]} has {length} values for {size} experts; keep those of "
                "the kept experts"
            )


def _of_block(config: AnyConfig, block: str) -> int | None:
    """Return how many experts one of Puzzle's `block_configs` gives a mixture, if one does."""
    match = LAYER.match(f"{block}.")
    index = -1 if match is None else int(match["number"])
    entry = config.blocks[index] if 0 <= index < len(config.blocks) else None
    stated = entry.get("num_local_experts") if isinstance(entry, Mapping) else None
    return stated if isinstance(stated, int) else None


def _against(mixture: Mixture, config: AnyConfig) -> Iterator[str]:
    said = config.number(NUM_EXPERTS)
    if said is not None and mixture.size not in (said[1], said[1] + _idle_experts(config)):
        yield (
            f"it has {mixture.size} experts, but {CONFIG_FILE} says {said[0]} {said[1]}; stock "
            "engines take one number for all layers"
        )
    units = config.number(EXPERT_UNITS)
    if units is not None and len(mixture.units) == 1 and units[1] not in mixture.units:
        (own,) = mixture.units
        yield f"its experts have {own} units, but {CONFIG_FILE} says {units[0]} {units[1]}"


def _idle_experts(config: AnyConfig) -> int:
    """Return the number of experts that return their input: they may have rows without tensors."""
    found = config.number(("zero_expert_num",))
    return 0 if found is None else found[1]


def _choice_faults(config: AnyConfig, least: int) -> Iterator[Fault]:
    """Yield why tokens cannot choose their experts; `least` is the smallest number of a layer."""
    chosen = config.number(EXPERTS_PER_TOKEN)
    if chosen is not None and chosen[1] > least:
        yield Fault(CONFIG_FILE, f"{chosen[0]} is {chosen[1]}, but a layer has {least} experts")
    groups, kept = config.number(("n_group",)), config.number(("topk_group",))
    if groups is None or groups[1] < 2:
        return
    if least % groups[1]:
        yield Fault(CONFIG_FILE, f"n_group is {groups[1]}, which does not divide {least} experts")
    elif kept is not None and kept[1] > groups[1]:
        yield Fault(CONFIG_FILE, f"topk_group is {kept[1]}, more than n_group, {groups[1]}")
    elif kept is not None and chosen is not None and kept[1] * (least // groups[1]) < chosen[1]:
        yield Fault(
            CONFIG_FILE,
            f"topk_group {kept[1]} leaves {kept[1] * (least // groups[1])} of {least} experts, "
            f"fewer than {chosen[0]}, {chosen[1]}",
        )
