"""The plan that a folder stores against the one that the rules make again of base and gates."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.plan import PLAN_FILE, Target
from sgate_serve.plan.json_form import read_plan
from sgate_serve.verify.base_plan import rounded_like
from sgate_serve.verify.stored_plan import PlanComparison, compare_plan, index_prices
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import random_gates, write_gates
from tests.small_llama import dense_llama, save

Edit = Callable[[dict[str, Any]], object]
PRICES = (None, 1, 40, 999)
NOT_RECORDED = ("base_digest of sgate_plan.json, which it lacks",)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its gates, and `out`, their conversion to widths that are a multiple of 4."""
    root = tmp_path_factory.mktemp("plans")
    base = save(dense_llama(), root / "base")
    write_gates(base, root / "gates", **random_gates(base, seed=4, closed=0.4))
    convert_to(root, "out", Target(align=4))
    return root


def convert_to(
    root: Path, name: str, target: Target, price: int | None = None, precision: str | None = None
) -> None:
    options = ConvertOptions(str(root / "base"), root / name, root / "gates", ("hf",), precision)
    convert(replace(options, target=target, index_price=price))


def compared(root: Path, name: str = "out", edit: Edit | None = None) -> PlanComparison:
    path = root / name / PLAN_FILE
    text = path.read_text()
    try:
        if edit is not None:
            value = json.loads(text)
            edit(value)
            path.write_text(json.dumps(value))
        plan, out = read_plan(path), Checkpoint.open(root / name)
        masked = rounded_like(open_masked(root / "base", root / "gates"), plan, out)
        return compare_plan(masked, plan, out)
    finally:
        path.write_text(text)


FALSIFIED: dict[str, tuple[Edit, str]] = {
    "closed": (lambda p: p.update(closed=7), "closed is 7, and "),
    "dead": (lambda p: p.update(dead=0), "dead is 0, and "),
    "align": (lambda p: p["target"].update(align=1), "layers[0]."),
    "shards": (lambda p: p["target"].update(tensor_parallel=2), "layers["),
    "too many": (
        lambda p: p["target"].update(tensor_parallel=3),
        "no plan can be made for its tar",
    ),
    "uniform": (lambda p: p["target"].update(uniform=True), "layers[0].lowerings["),
    "values": (lambda p: p["layers"][1]["value_dims"].pop(), "layers[1].value_dims has "),
    "keys": (lambda p: p["layers"][1]["key_dims"].pop(0), "layers[1].key_dims[0] is 17, and 16"),
    "rule": (lambda p: removal(p).update(rule="9 whim"), ".rule is '9 whim', and '"),
    "axis": (lambda p: removal(p).update(axis="heads "), ".axis is 'heads ', and '"),
    "cause": (lambda p: removal(p).update(cause="why not"), ".cause is 'why not', and '"),
    "indices": (lambda p: removal(p)["indices"].append(29), ".indices has "),
    "removal": (lambda p: p["layers"][1]["removals"].pop(), "layers[1].removals has "),
    "reason": (lambda p: revival(p).update(reason="pity"), ".reason is 'pity', and '"),
    "saved": (lambda p: lowering(p).update(saved=1), ".saved is 1, and "),
    "another": (lambda p: p.update(figures={"removed": 0.9}), "figures is no field of a plan"),
}


def removal(plan: dict[str, Any]) -> dict[str, Any]:
    return next(one for layer in plan["layers"] for one in layer["removals"])


def revival(plan: dict[str, Any]) -> dict[str, Any]:
    return next(one for layer in plan["layers"] for one in layer["revivals"])


def lowering(plan: dict[str, Any]) -> dict[str, Any]:
    return next(one for layer in plan["layers"] for one in layer["lowerings"])


@pytest.mark.parametrize("case", FALSIFIED)
def test_a_falsified_field_is_named(converted: Path, case: str) -> None:
    edit, said = FALSIFIED[case]
    found = compared(converted, edit=edit)
    assert found.is_equal is False and found.difference is not None
    assert found.difference.startswith("sgate_plan.json: ")
    assert said in found.difference, found.difference
    assert found.difference.endswith("; convert the base again")


@pytest.mark.parametrize(
    ("target", "price"),
    [
        (Target(uniform=True), None),
        *((target, price) for target in (Target(), Target(engine="onnx")) for price in PRICES),
    ],
)
def test_plans_of_any_target_are_made_again(
    converted: Path, tmp_path: Path, target: Target, price: int | None
) -> None:
    for name in ("base", "gates"):
        (tmp_path / name).symlink_to(converted / name)
    convert_to(tmp_path, "out", target, price)
    plan = read_plan(tmp_path / "out" / PLAN_FILE)
    assert price is None or price in index_prices(plan)
    assert compared(tmp_path) == PlanComparison(True)


def test_plans_of_rounded_weights_are_made_again(converted: Path) -> None:
    convert_to(converted, "half", Target(), precision="fp16")
    assert compared(converted, "half") == PlanComparison(True)


def test_plans_of_older_releases_may_lack_fields_and_no_more(converted: Path) -> None:
    def age(plan: dict[str, Any]) -> None:
        del plan["base_digest"], plan["gates_fingerprint"], plan["target"]["uniform"]

    lacks = (*NOT_RECORDED, "gates_fingerprint of sgate_plan.json, which it lacks")
    assert compared(converted, edit=age) == PlanComparison(True, None, lacks)

    def age_and_reword(plan: dict[str, Any]) -> None:
        age(plan)
        removal(plan)["cause"] = "in other words"

    found = compared(converted, edit=age_and_reword)
    assert not found.is_equal and found.not_compared == lacks
    assert found.difference is not None and "layers[0]" in found.difference


def test_verification_reports_it(converted: Path) -> None:
    names = (str(converted / "base"), str(converted / "out"), converted / "gates", "torch")
    result = verify(VerifyOptions(*names))
    assert result.passed and result.plan_equal
    assert "sgate_plan.json equals the plan of this base, made again" in result.lines()
    path = converted / "out" / PLAN_FILE
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), "dead": 1, "base_digest": None}))
    result = verify(VerifyOptions(*names))
    path.write_text(text)
    assert not result.passed and result.plan_equal is False
    assert result.difference is not None
    assert result.difference.startswith("sgate_plan.json: dead is 1, and ")
    assert NOT_RECORDED[0] in result.not_checked
