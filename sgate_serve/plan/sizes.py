"""The smaller sizes of a folder, `sgate_sizes.json`: a whole Plan for each, of the same base.

A size keeps nothing that the folder does not hold, so a loader can slice it out: `--keep`. Folders
without the file have one size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError
from sgate_serve.json_fields import OBJECT, WHOLE, is_number, read_json
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.figures import TOLERANCE, removed
from sgate_serve.plan.json_form import plan_from_json, plan_to_json

SIZES_FILE = "sgate_sizes.json"
SIZES_FORMAT, SIZES_VERSION = "sgate-sizes", 1


@dataclass(frozen=True)
class Size:
    """One smaller size: the fraction of the block weights that it was made to `keep`.

    `step` is the last step of the gates' order that is closed in it.
    """

    keep: float
    step: int
    plan: Plan


def write_sizes(sizes: Sequence[Size], path: Path) -> None:
    listed = [
        {"keep": size.keep, "step": size.step, "plan": plan_to_json(size.plan)} for size in sizes
    ]
    head = {"format": SIZES_FORMAT, "version": SIZES_VERSION}
    path.write_text(json.dumps(head | {"sizes": listed}) + "\n", encoding="utf-8")


def read_sizes(folder: Path) -> tuple[Size, ...]:
    """Read the sizes of a folder, the largest first; raise SgateError if they are malformed."""
    path = folder / SIZES_FILE
    if not path.exists():
        return ()
    stored, remedy = read_json(path), "convert the base again"
    if (stored.get("format"), stored.get("version")) != (SIZES_FORMAT, SIZES_VERSION):
        raise PlanError(f"{path} is not a file of sizes of this release; {remedy}")
    listed = stored.get("sizes")
    if not isinstance(listed, list) or not all(map(_is_size, listed)):
        raise PlanError(
            f"{path}: sizes must be a list of objects with keep, step and plan; {remedy}"
        )
    return tuple(
        Size(float(each["keep"]), each["step"], plan_from_json(each["plan"], f"{path}: plan"))
        for each in listed
    )


def size_of(folder: Path, keep: float) -> Size:
    """Return the size of a folder that keeps this fraction.

    Raises PlanError, with the sizes that there are, for another one.
    """
    sizes = read_sizes(folder)
    for size in sizes:
        if size.keep == keep:
            return size
    if not sizes:
        raise PlanError(
            f"--keep {keep:g}: {folder} has one size only; convert the base with --sizes"
        )
    known = ", ".join(f"{size.keep:g}" for size in sizes)
    raise PlanError(
        f"--keep {keep:g}: {folder} has the sizes {known}; give one of them, or leave --keep out "
        "for the largest"
    )


def kept(plan: Plan, dense: ModelSpec) -> float:
    """Return the fraction of the block weights that a plan keeps."""
    return 1 - removed(plan, dense)


def check_size(size: Size, whole: Plan, dense: ModelSpec, source: str) -> None:
    """Raise PlanError, naming `source`, unless a size is of the folder's base and what it says.

    `whole` is the folder's plan, `dense` the architecture of its base.
    """
    size.plan.check(dense, f"{source}, size {size.keep:g}")
    found = kept(size.plan, dense)
    if size.plan.base_fingerprint != whole.base_fingerprint or abs(found - size.keep) > TOLERANCE:
        raise PlanError(
            f"{source}: size {size.keep:g} keeps {found:.3f} of base "
            f"{size.plan.base_fingerprint:.12}…, and {PLAN_FILE} is of "
            f"{whole.base_fingerprint:.12}…; convert the base again"
        )


def _is_size(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return (
        is_number(value.get("keep"))
        and WHOLE.accepts(value.get("step"))
        and OBJECT.accepts(value.get("plan"))
    )
