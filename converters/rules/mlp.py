"""Rules 1 and 2: MLP units that nobody reads, that say nothing, or that say always the same."""

from collections.abc import Iterator

from converters.rules.facts import Context, Death
from sgate_serve.family import DOWN, GATE, MLP, UP


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
    4. A live bias keeps the unit alive: it then adds a constant (rule 2), not nothing.
    """
    layer = at.layer
    if not layer.has(MLP):
        return
    activation = f"{layer.spec.activation}(0) = 0"
    if not layer.family.is_gated:
        if layer.is_zero_at_zero:
            cause = f"row and bias are zero and {activation}"
            yield Death("mlp_units", layer.found[UP].silent_rows, cause)
        return
    yield Death("mlp_units", layer.found[UP].silent_rows, "up row and bias are zero")
    if layer.is_zero_at_zero:
        cause = f"gate row and bias are zero and {activation}"
        yield Death("mlp_units", layer.found[GATE].silent_rows, cause)


def constant_units(at: Context) -> Iterator[Death]:
    """A unit that no input reaches is a constant; it moves into the down bias (rule 2).

    1. Ungated: its row is zero, so it is act(b). For ReLU and b ≤ 0 that is nothing.
    2. Gated: both rows are zero, so it is act(b_gate) · b_up. With one live row it is no constant.
    3. Where the family has no down bias, one is added; before a post-norm, as the bias itself is.
    """
    layer = at.layer
    if not layer.has(MLP):
        return
    constant = layer.found[UP].rows
    if layer.family.is_gated:
        constant = constant & layer.found[GATE].rows
    yield Death("mlp_units", constant, "rows are zero: a constant", constant=constant)
