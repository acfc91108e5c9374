"""Does a folder belong to a base: its architecture, its plan, its gates and its stored type."""

from dataclasses import dataclass, replace

from converters.masked import MaskedCheckpoint
from converters.quantize import stored_tensors
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import FLOAT_DTYPES
from sgate_serve.errors import CheckpointError, GatesError
from sgate_serve.gates import gates_fingerprint
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.json_form import read_plan


@dataclass(frozen=True)
class BasePlan:
    """The plan that made a folder from this base, or the reason why there is none.

    A base compared with itself needs no plan: both are None.
    """

    plan: Plan | None = None
    missing: str | None = None


def plan_of(out: Checkpoint, masked: MaskedCheckpoint) -> BasePlan:
    """Read the plan in `out`, if it is of this base.

    Raises PlanError for a plan that cannot rewrite the model, GatesError for one of other gates,
    and CheckpointError for a conversion that is given as its own base, which would prove nothing.
    """
    path, base = out.folder / PLAN_FILE, masked.base
    if out.folder.samefile(base.folder):
        if path.exists() or out.stored_config.get("model_type") == SGATE_MODEL_TYPE:
            raise CheckpointError(
                f"{out.folder} is a conversion, and would be compared with itself; give the base "
                "that it was converted from"
            )
        if masked.gates is None:
            return BasePlan()
    if not path.exists():
        return BasePlan(
            missing=f"{path} is missing, and without it nothing says what the tensors, config.json "
            "and the other files must be; convert the base again"
        )
    plan = read_plan(path)
    if plan.base_fingerprint != base.fingerprint:
        return BasePlan(
            missing=f"{path} was made for base {plan.base_fingerprint:.12}…, and {base.folder} is "
            f"{base.fingerprint:.12}…; give the base that was converted, or convert this one"
        )
    if plan.base_digest not in (None, base.digest):
        return BasePlan(
            missing=f"{path} was made before config.json or weights of {base.folder} were edited; "
            "convert it again"
        )
    check_gates(plan, masked, out)
    plan.check(masked.spec, str(path))
    return BasePlan(plan)


def check_gates(plan: Plan, masked: MaskedCheckpoint, out: Checkpoint) -> None:
    """Raise GatesError unless `out` was converted with these gates, or its plan does not say."""
    expected = plan.gates_fingerprint
    found = "" if masked.gates is None else gates_fingerprint(masked.gates)
    if expected in (None, found):
        return
    if not expected:
        raise GatesError(f"{out.folder} was converted without gates; omit --gates")
    if not found:
        raise GatesError(
            f"{out.folder} was converted with gates {expected:.12}…; give them by --gates"
        )
    raise GatesError(
        f"{out.folder} was converted with gates {expected:.12}…, and --gates are {found:.12}…; "
        "give those that it was converted with, or convert again"
    )


def rounded_like(masked: MaskedCheckpoint, plan: Plan | None, out: Checkpoint) -> MaskedCheckpoint:
    """Return the masked model with its weights rounded to the floating-point type of `out`."""
    embedding = f"{out.spec.family.embedding}.weight"
    stored = out.tensors[embedding].dtype
    if plan is None:
        return masked if stored == masked.dtype(embedding) else replace(masked, precision=stored)
    types = {info.dtype for info in out.tensors.values()} & FLOAT_DTYPES
    for precision in (None, *sorted(types)):
        rounded = replace(masked, precision=precision)
        headers, _ = stored_tensors(rounded, plan, out.is_int8)
        found = (out.tensors.get(header.name) for header in headers)
        if all(info and info.dtype == h.dtype for info, h in zip(found, headers, strict=True)):
            return rounded
    return masked


def check_same_model(dense: ModelSpec, out: Checkpoint) -> None:
    """Raise CheckpointError unless `out` can be a pruned form of the dense model."""
    small = out.spec
    same = ("family", "task", "norm_size", "vocab_size", "num_labels")
    unequal = [name for name in same if getattr(dense, name) != getattr(small, name)]
    if unequal or len(dense.layers) != len(small.layers):
        raise CheckpointError(
            f"{out.folder} is not a conversion of this checkpoint: they differ in "
            f"{', '.join(unequal) or 'the number of layers'}"
        )
