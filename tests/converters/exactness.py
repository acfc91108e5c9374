"""One example of exactness: make zeros in a model of the zoo, convert it, and check three things.

The converted model computes the same in float64; nothing provably dead is left in it; to prune it
again changes nothing. Models are stored in float64 where folds are to be exact to its rounding.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sgate_serve.models  # noqa: F401
from converters.convert import ConvertOptions, convert, open_masked
from converters.find_facts import model_facts
from converters.masked import MaskedCheckpoint
from converters.rules import find_dead
from converters.rules.facts import Flags
from converters.rules.fixpoint import Fixpoint
from sgate_serve.architecture.family import ATTENTION, MLP_ROLES
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import DTYPES, Array
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import EXPERTS, coupled_sites, linear_sites
from sgate_serve.loaders.torch_model import dense_model
from sgate_serve.plan import AXES, LayerPlan, Plan, Target
from tests.converters.zeroing import Weights, make_zeros
from tests.families.float64 import outputs64
from tests.families.zoo import AUTO_CLASSES, Variant, build, token_batch

NO_TARGET = Target()
# Of the largest output, or of 1 where all are smaller.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-5}


@dataclass(frozen=True)
class Example:
    """What to build, which zeros to make in it by weights or gates, and what to convert for.

    `change` is one more way to make zeros, for examples that are no random ones.
    """

    variant: Variant
    seed: int = 0
    ways: tuple[tuple[str, int], ...] = ()
    gates: tuple[str, float] | None = None
    has_added_biases: bool = False
    target: Target = NO_TARGET
    index_price: int | None = 0
    dtype: torch.dtype = torch.float64
    change: Callable[[Weights], None] | None = None

    @property
    def is_minimal(self) -> bool:
        """Say whether every zero is to go: index work is free and no width is asked for."""
        return self.index_price == 0 and self.target == Target(engine=self.target.engine)


def check(example: Example, root: Path) -> Plan:
    """Convert and check everything; return the plan."""
    base, gates, out = root / "base", None, root / "out"
    write_base(example, base)
    if example.gates is not None:
        gates = root / "gates"
        deltas = added_biases(Checkpoint.open(base), example) if example.has_added_biases else {}
        write_random_gates(Checkpoint.open(base), gates, example.gates, example.seed, deltas)
    plan = convert(_options(example, base, out, gates))
    check_outputs(example, open_masked(base, gates), out)
    # With gates no weight is looked at: zeros that are in the base besides are left in it.
    if not (example.ways and gates):
        check_nothing_is_left(example, open_masked(base, gates), plan, out)
        convert(_options(example, out, root / "again", None))
        check_same_tensors(out, root / "again")
    shutil.rmtree(root)
    return plan


def write_base(example: Example, folder: Path) -> None:
    model = build(example.variant, example.seed).to(torch.float64)
    generator = torch.Generator().manual_seed(example.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Values that fp32 cannot hold, so that nothing is rounded to it unseen.
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.mul_(1 + 1e-8 * noise)
    model.config.dtype = example.dtype
    model = model.to(example.dtype)
    model.save_pretrained(folder)
    if example.ways or example.change:
        weights = Weights(model, Checkpoint.open(folder).spec)
        make_zeros(weights, list(example.ways))
        if example.change is not None:
            example.change(weights)
            weights.store()
        shutil.rmtree(folder)
        model.save_pretrained(folder)


def added_biases(base: Checkpoint, example: Example) -> dict[str, Array]:
    """Return biases, with zeros in them, for some of the block linears that have none."""
    random, own = np.random.default_rng(example.seed), base.spec.tensor_shapes()
    biases = {}
    for index in range(len(base.spec.layers)):
        for module, roles in base.spec.modules(index).items():
            rows = sum(base.spec.linear_shapes(index)[role][0] for role in roles)
            is_expert = base.spec.expert_of(module) is not None
            if f"{module}.bias" not in own and not is_expert and random.random() < 0.5:
                bias = random.normal(0, 0.1, rows) * (random.random(rows) < 0.8)
                stored = base.tensors[f"{base.spec.family.embedding}.weight"].dtype
                biases[f"{module}.bias"] = bias.astype(DTYPES[stored])
    return biases


def write_random_gates(
    base: Checkpoint,
    folder: Path,
    kind: tuple[str, float],
    seed: int,
    deltas: Mapping[str, Array] | None = None,
) -> None:
    """Write gates: a share is exactly 0, sometimes all of one, the others are 1 or fractions."""
    granularity, closed = kind
    sites = coupled_sites if granularity == "coupled" else linear_sites
    random, values = np.random.default_rng(seed), {}
    for site in sites(base.spec):
        gate = random.choice([1.0, 1.0, 0.5, 0.3], site.num_gates)
        gate[random.random(site.num_gates) < (1 if random.random() < 0.05 else closed)] = 0
        if site.kind == EXPERTS:
            gate = (gate > 0).astype(np.float64)
            gate[random.integers(site.num_gates)] = 1
        values[site.key] = gate.astype(np.float32)
    family = base.spec.family.name
    Gates("test", family, granularity, base.fingerprint, values).write(folder, deltas)


def _options(example: Example, base: Path, out: Path, gates: Path | None) -> ConvertOptions:
    # A stock model has no index vectors, and no price for them.
    price = None if example.target.uniform else example.index_price
    return ConvertOptions(str(base), out, gates, target=example.target, index_price=price)


def check_outputs(example: Example, masked: MaskedCheckpoint, out: Path) -> None:
    ids = token_batch(example.variant, example.seed)
    expected = outputs64(dense_model(masked, torch.float64), ids)
    if example.target.uniform:
        assert Checkpoint.open(out).config["model_type"] == example.variant.family
    load = AUTO_CLASSES[example.variant.task].from_pretrained
    is_mixture = masked.spec.family.mixture is not None
    kernels = {"experts_implementation": "eager"} if is_mixture else {}
    found = outputs64(load(out, dtype=torch.float64, **kernels), ids)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert values.shape == found[name].shape, name
        scale = max(1.0, float(np.abs(values).max()))
        difference = float(np.abs(values - found[name]).max())
        assert difference <= TOLERANCES[example.dtype] * scale, (name, difference / scale)


def check_nothing_is_left(
    example: Example, masked: MaskedCheckpoint, plan: Plan, out: Path
) -> None:
    """The rules must find in the converted weights what they found before, and nothing else."""
    before, after = (
        find_dead(model_facts(one), is_uniform=example.target.uniform)
        for one in (masked, open_masked(out, None))
    )
    for layer in plan.layers:
        for name, (expected, found) in _survivors(layer, before, after).items():
            assert np.array_equal(expected, found), (layer.index, name, expected, found)
    hidden = slice(None) if plan.hidden is None else np.asarray(plan.hidden)
    assert np.array_equal(before.hidden[hidden], after.hidden)
    assert after.head_units.all()
    if example.is_minimal:
        check_no_zero_lines(plan, out)


def _survivors(
    layer: LayerPlan, before: Fixpoint, after: Fixpoint
) -> Mapping[str, tuple[Any, Any]]:
    """Return what is alive of a layer before and after, both in what the plan keeps."""
    old, new = before.layers[layer.index], after.layers[layer.index]
    pairs: dict[str, tuple[Any, Any]] = {}
    for axis in AXES:
        if not (layer.mlp_units if axis in ("mlp_units", "experts") else layer.heads):
            continue
        # No rule looks at the dimensions of heads that are all dead, as in a revived block.
        if axis.endswith("_dims") and not old.has(ATTENTION):
            continue
        kept = layer.kv_heads if axis.endswith("_dims") else layer.survivors(axis)
        pairs[axis] = (old.alive(axis)[np.asarray(kept, np.int64)], new.alive(axis))
    hidden = before.hidden
    for role in new.inputs:
        block = layer.mlp_units if role in MLP_ROLES else layer.heads
        has = old.has("mlp" if role in MLP_ROLES else ATTENTION)
        if block and has:
            pairs[f"{role}.columns"] = (old.inputs[role][hidden], new.inputs[role])
    return pairs


def check_no_zero_lines(plan: Plan, out: Path) -> None:
    """No block linear stores a zero row or column, but where a unit was revived or one is least.

    Experts have no index vectors, so what reads or writes the stream there may hold zeros.
    """
    checkpoint = Checkpoint.open(out)
    for module, index in checkpoint.spec.module_names().items():
        if plan.layers[index].revivals or checkpoint.spec.expert_of(module) is not None:
            continue
        weight = checkpoint.read(f"{module}.weight")
        for axis in (0, 1):
            zero: Flags = ~np.any(weight != 0, axis=axis)
            assert not zero.any() or len(zero) == 1, (module, axis, zero)


def check_same_tensors(one: Path, other: Path) -> None:
    first, second = Checkpoint.open(one), Checkpoint.open(other)
    differing = {
        k for k in {*first.config, *second.config} if first.config.get(k) != second.config.get(k)
    }
    assert not differing, [(k, first.config.get(k), second.config.get(k)) for k in differing]
    assert first.tensors.keys() == second.tensors.keys()
    for name in first.tensors:
        left, right = first.read(name), second.read(name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)
