"""Smaller sizes of a converted folder: their plans when it is written, their folders when loaded.

Each closes further gates in the order that training found. What is written for a size is, byte for
byte, what the conversion of its mask would have written, but it is made of the larger folder alone.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from converters.find_facts import model_facts
from converters.masked import MaskedCheckpoint
from converters.model_card import CARD_FILE, model_card
from converters.nesting import nested_plan
from converters.rules import compile_plan
from converters.second_reading import check_with_transformers
from converters.to_hf import hf_config, write_hf
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.companions import restated_settings
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.errors import GatesError, PlanError, percent_meant
from sgate_serve.gates import Gates, gates_fingerprint
from sgate_serve.gates.order import ORDER_FILE, num_steps
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.figures import TOLERANCE
from sgate_serve.plan.json_form import read_plan, write_plan
from sgate_serve.plan.placement import dense_spec
from sgate_serve.plan.sizes import SIZES_FILE, Size, check_size, kept


def find_sizes(
    masked: MaskedCheckpoint, whole: Plan, keeps: Sequence[float], index_price: int | None = None
) -> tuple[Size, ...]:
    """Return a size for each fraction of the block weights to keep, the largest first.

    `whole` is the plan of the folder, for the mask as it is. Raises PlanError for gates without an
    order, a fraction that no step comes near, two that are one size, and a plan that is no part of
    `whole`.
    """
    wanted = sorted(set(keeps), reverse=True)
    sizes = tuple(_find_size(masked, whole, keep, index_price) for keep in wanted)
    for larger, smaller in pairwise(sizes):
        if larger.step == smaller.step:
            raise PlanError(
                f"--sizes {larger.keep:g},{smaller.keep:g}: both are the size that keeps "
                f"{kept(larger.plan, masked.spec):.3f} of the block weights; leave one out"
            )
    return sizes


def masked_to(masked: MaskedCheckpoint, step: int) -> MaskedCheckpoint:
    """Return the masked dense model of the size whose last closed step is `step`."""
    return replace(masked, gates=ordered_gates(masked).closed_to(step))


def ordered_gates(masked: MaskedCheckpoint) -> Gates:
    """Return the gates; raise GatesError unless they say which close next."""
    if masked.gates is None or not masked.gates.order:
        source = "no --gates" if masked.gates is None else masked.gates.source
        raise GatesError(
            f"{source}: smaller sizes need gates that say which close next; give a folder with "
            f"{ORDER_FILE}, as sgate train writes it for coupled gates and experts"
        )
    return masked.gates


def _find_size(masked: MaskedCheckpoint, whole: Plan, keep: float, index_price: int | None) -> Size:
    gates = ordered_gates(masked)
    most = kept(whole, masked.spec)
    if not 0 < keep < most - TOLERANCE:
        raise PlanError(
            f"--sizes {keep:g}: give fractions of the block weights to keep, below "
            f"{most - TOLERANCE:.3f}; the largest size keeps {most:.3f}{percent_meant(keep)}"
        )
    step, plan = _nearest(masked, whole, keep, index_price)
    found = kept(plan, masked.spec)
    if abs(found - keep) > TOLERANCE:
        raise PlanError(
            f"--sizes {keep:g}: the nearest that these gates reach is {found:.3f}; give that"
        )
    fingerprint = gates_fingerprint(gates.closed_to(step))
    plan = replace(plan, base_digest=masked.base.digest, gates_fingerprint=fingerprint)
    try:
        nested_plan(whole, plan, masked.spec)
        _check_settings(masked, whole, plan)
    except PlanError as error:
        raise PlanError(f"--sizes {keep:g}: {error}") from error
    _check_config(masked, plan, keep)
    return Size(keep, step, plan)


def _check_config(masked: MaskedCheckpoint, plan: Plan, keep: float) -> None:
    """Raise CheckpointError unless transformers reads the config of a size as this package does."""
    with TemporaryDirectory() as root:
        path = Path(root) / CONFIG_FILE
        path.write_text(json.dumps(hf_config(masked, plan)), encoding="utf-8")
        check_with_transformers(path.parent, Path(f"--sizes {keep:g}: {CONFIG_FILE}"))


def _check_settings(masked: MaskedCheckpoint, whole: Plan, plan: Plan) -> None:
    """Raise PlanError if the size needs a tokenizer_config.json that its folder does not hold.

    A folder that is no stock model states the class of its tokenizer where the base's type does.
    """
    configs = (hf_config(masked, each) for each in (whole, plan))
    stated, needed = (restated_settings(masked.base.folder, config) for config in configs)
    if stated is not None and needed is None:
        raise PlanError(
            "it is a stock model, and the largest size is none and has the class of its tokenizer "
            "restated; give another size"
        )


def _nearest(
    masked: MaskedCheckpoint, whole: Plan, keep: float, index_price: int | None
) -> tuple[int, Plan]:
    """Return the step whose plan keeps most nearly the fraction, and its plan."""

    def plan_to(step: int) -> Plan:
        facts = model_facts(masked_to(masked, step))
        return compile_plan(facts, whole.base_fingerprint, whole.target, index_price)

    low, high = 0, num_steps(ordered_gates(masked).order)
    while low < high:
        middle = (low + high) // 2
        if kept(plan_to(middle), masked.spec) > keep:
            low = middle + 1
        else:
            high = middle
    found = {step: plan_to(step) for step in {max(low - 1, 0), low}}
    step = min(found, key=lambda each: abs(kept(found[each], masked.spec) - keep))
    return step, found[step]


def dense_of(model: Checkpoint, plan: Plan) -> ModelSpec:
    """Return the architecture of the base that a folder was made of, with trained biases."""
    dense = dense_spec(plan, model.spec, str(model.folder / PLAN_FILE))
    return replace(dense, extra_biases=frozenset(plan.extra_biases))


def write_size(
    writer: FolderWriter, model: Checkpoint, size: Size, graph_precision: str | None
) -> None:
    """Write the folder of a size, sliced out of the folder `model`; the caller commits it.

    `graph_precision` is that of the folder's graph, None if it has none: a size gets one alike.
    """
    whole = read_plan(model.folder / PLAN_FILE)
    dense = dense_of(model, whole)
    check_size(size, whole, dense, f"{model.folder / SIZES_FILE}")
    nested = nested_plan(whole, size.plan, dense)
    # Whoever serves a size shall not have to import transformers for it.
    write_hf(writer, MaskedCheckpoint(model), nested, is_checked=True)
    write_plan(size.plan, writer.path(PLAN_FILE))
    formats = ("hf",) if graph_precision is None else ("hf", "onnx")
    card = model_card(size.plan, dense, graph_precision, formats)
    writer.path(CARD_FILE).write_text(card, encoding="utf-8")
