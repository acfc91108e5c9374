"""The stored plan against the one that the rules make again of the masked base, field by field."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from reprlib import repr as brief
from typing import Any

from converters.find_facts import model_facts
from converters.masked import MaskedCheckpoint
from converters.rules import compile_plan
from converters.rules.lowering import SPLIT_LAUNCHES
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import PlanError
from sgate_serve.gates import gates_fingerprint
from sgate_serve.json_fields import read_json
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.json_form import plan_to_json, with_added_fields
from sgate_serve.plan.targets import TARGETS

# What older releases did not record.
OPTIONAL = ("base_digest", "gates_fingerprint")
# Differences are counted up to here, to say which price the plan was made for.
MOST = 100


@dataclass(frozen=True)
class PlanComparison:
    """The first difference in words, None if there is none, and what could not be compared."""

    is_equal: bool
    difference: str | None = None
    not_compared: tuple[str, ...] = ()


def compare_plan(masked: MaskedCheckpoint, plan: Plan, out: Checkpoint) -> PlanComparison:
    """Compare the plan in `out`, read as `plan`, with one made of the base, gates and target."""
    stored = with_added_fields(read_json(out.folder / PLAN_FILE))
    missing = tuple(key for key in OPTIONAL if stored.get(key) is None)
    try:
        difference = _first_difference(masked, plan, stored)
    except PlanError as error:
        difference = f"no plan can be made for its target: {error}"
    lacks = tuple(f"{key} of {PLAN_FILE}, which it lacks" for key in missing)
    if difference is None:
        return PlanComparison(True, None, lacks)
    return PlanComparison(False, f"{PLAN_FILE}: {difference}; convert the base again", lacks)


def index_prices(plan: Plan) -> list[int | None]:
    """Return the prices of an index operation that a plan may be made for; None is its engine's.

    A plan does not record its price, but each lowering has its cost.
    """
    costs = {one.cost for layer in plan.layers for one in layer.lowerings}
    if plan.target.uniform or not costs:
        return [None]
    # A gather for each role alone costs more.
    prices = {min(costs), min(costs) // (1 + SPLIT_LAUNCHES)}
    known = TARGETS.get(plan.target.engine)
    if known is None or known.index_price in prices:
        return [None]
    return [*sorted(prices)]


def _first_difference(masked: MaskedCheckpoint, plan: Plan, stored: Any) -> str | None:
    facts, found = model_facts(masked), list[list[str]]()
    gates = "" if masked.gates is None else gates_fingerprint(masked.gates)
    for price in index_prices(plan):
        made = compile_plan(facts, masked.base.fingerprint, plan.target, price)
        made = replace(made, base_digest=masked.base.digest, gates_fingerprint=gates)
        expected = json.loads(json.dumps(plan_to_json(made)))
        expected |= {key: None for key in OPTIONAL if stored.get(key) is None}
        found.append(list(islice(_differences(stored, expected, ""), MOST)))
    fewest = min(found, key=len)
    return fewest[0] if fewest else None


def _differences(found: Any, expected: Any, path: str) -> Iterator[str]:
    """Yield where two JSON values differ, in words."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in expected:
            yield from _differences(found.get(key), expected[key], f"{path}.{key}".lstrip("."))
        for key in found.keys() - expected.keys():
            yield f"{path}.{key}".lstrip(".") + " is no field of a plan"
    elif isinstance(found, list) and isinstance(expected, list) and found != expected:
        for index, pair in enumerate(zip(found, expected, strict=False)):
            yield from _differences(*pair, f"{path}[{index}]")
        if len(found) != len(expected):
            yield f"{path} has {len(found)} entries, and the plan of this base {len(expected)}"
    elif found != expected or type(found) is not type(expected):
        yield f"{path} is {brief(found)}, and {brief(expected)} in the plan of this base"
