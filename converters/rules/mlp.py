"""Rules 1 and 2: MLP units that nobody reads, that say nothing, or that say always the same."""

from collections.abc import Iterator

from converters.rules.facts import Context, Death
from sgate_serve.architecture.activations import ACTIVATIONS
from sgate_serve.architecture.family import DOWN, GATE, MLP, UP


def unread_units(at: Context) -> Iterator[Death]:
    """A unit whose down column is zero dies.

    1. Nothing else reads a unit, so its value cannot matter, whatever its rows and biases are.
    """
    if at.layer.has(MLP):
        yield Death("mlp_units", at.layer.found[DOWN].columns, "down column is zero")


def silent_units(at: Context) -> Iterator[Death]:
    """A unit that is always zero dies.

    1. Gated, act(gate) · up: the up row and its bias are zero, so the product is.
    2. Gated: the gate row and its bias are zero, and act(0) = 0 (a whitelist of activations).
    3. Ungated, act(up): the row and its bias are zero, and act(0) = 0.
    4. In both, the bias may be live where the activation makes 0 of it: b ≤ 0 under ReLU.
    5. Any other live bias keeps the unit alive: it then adds a constant (rule 2), not nothing.
    """
    layer = at.layer
    if not layer.has(MLP):
        return
    before, activation = GATE if layer.family.is_gated else UP, layer.spec.activation
    if layer.family.is_gated:
        yield Death("mlp_units", layer.found[UP].silent_rows, "up row and bias are zero")
    cause = f"{before} row is zero and {activation} of its bias too"
    yield Death("mlp_units", layer.found[before].inactive_rows(activation), cause)


def constant_units(at: Context) -> Iterator[Death]:
    """A unit that no input reaches is a constant; it moves into the down bias (rule 2).

    1. Ungated: its row is zero, so it is act(b).
    2. Gated: both rows are zero, so it is act(b_gate) · b_up. With one live row it is no constant.
    3. Where the family has no down bias, one is added; before a post-norm, as the bias itself is.
    4. Nobody can say what it is under an activation that is not known here: the unit stays.
    """
    layer = at.layer
    if not layer.has(MLP) or layer.spec.activation not in ACTIVATIONS:
        return
    constant = layer.found[UP].rows
    if layer.family.is_gated:
        constant = constant & layer.found[GATE].rows
    yield Death("mlp_units", constant, "rows are zero: a constant", constant=constant)
