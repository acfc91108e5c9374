"""Rules 1 and 2: MLP units that are never read, always zero or constant."""

from collections.abc import Iterator

from converters.rules.findings import Finding, LayerView
from sgate_serve.architecture.activations import ACTIVATIONS
from sgate_serve.architecture.family import DOWN, GATE, MLP, UP


def unread_units(view: LayerView) -> Iterator[Finding]:
    """Remove units whose down column is zero (rule 1).

    1. Only the down projection reads a unit, so its value cannot matter, whatever its rows and
       biases are.
    """
    if view.layer.has(MLP):
        yield Finding("mlp_units", view.layer.live_zeros[DOWN].columns, "down column is zero")


def silent_units(view: LayerView) -> Iterator[Finding]:
    """Remove units that are always zero (rule 1).

    1. Gated, act(gate) · up: the up row and its bias are zero, so the product is. Not where 1 is
       added to up (GPT-OSS).
    2. Gated: the gate row and its bias are zero, and act(0) = 0 (a whitelist of activations).
    3. Ungated, act(up): the row and its bias are zero, and act(0) = 0.
    4. For 2 and 3 a nonzero bias is allowed where the activation maps it to 0: b ≤ 0 under ReLU.
    5. Any other nonzero bias keeps the unit: it may be a constant (rule 2), but it is not zero.
    """
    layer = view.layer
    if not layer.has(MLP):
        return
    before, activation = GATE if layer.family.is_gated else UP, layer.spec.activation
    if layer.family.is_gated and layer.spec.clamped_units is None:
        yield Finding("mlp_units", layer.live_zeros[UP].silent_rows, "up row and bias are zero")
    cause = f"{before} row is zero and {activation} of its bias too"
    yield Finding("mlp_units", layer.live_zeros[before].inactive_rows(activation), cause)


def constant_units(view: LayerView) -> Iterator[Finding]:
    """Remove units that do not depend on the input; the constant moves to the down bias (rule 2).

    1. Ungated: the unit's row is zero, so the unit is act(b).
    2. Gated: both rows are zero, so it is act(b_gate) · b_up. With one nonzero row it varies.
    3. Where the family has no down bias, one is added. A norm after the block sees the same sum.
    4. The activation must be one that we can compute; otherwise the unit stays.
    5. Experts with biases (GPT-OSS) keep such a unit: each has a down bias of its own, and none
       receives constants.
    """
    layer = view.layer
    if not layer.has(MLP) or layer.spec.activation not in ACTIVATIONS:
        return
    if layer.spec.clamped_units is not None:
        return
    constant = layer.live_zeros[UP].rows
    if layer.family.is_gated:
        constant = constant & layer.live_zeros[GATE].rows
    yield Finding("mlp_units", constant, "rows are zero: a constant", constant=constant)
