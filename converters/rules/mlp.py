"""Rule 1: MLP units that are never read, or that never say anything."""

from collections.abc import Iterator

from converters.rules.facts import Death, LayerFacts, Liveness
from sgate_serve.families import DOWN, GATE, UP


def unread_units(facts: LayerFacts, live: Liveness) -> Iterator[Death]:
    """A unit whose down column is zero dies.

    1. Nothing else reads a unit, so its value cannot matter, whatever its rows and biases are.
    """
    if live.mlp_units.any():
        yield Death("mlp_units", facts.zeros[DOWN].columns, "down column is zero")


def silent_units(facts: LayerFacts, live: Liveness) -> Iterator[Death]:
    """A gated unit, act(gate) · up, dies if one factor is always zero.

    1. Up row and up bias are zero: the product is zero.
    2. Gate row and gate bias are zero, and act(0) = 0 (a whitelist of activations).
    3. A live bias keeps the unit alive: it then adds a constant (rule 2), not nothing.
    """
    if not live.mlp_units.any():
        return
    yield Death("mlp_units", facts.zeros[UP].silent_rows, "up row and bias are zero")
    if facts.is_zero_at_zero:
        cause = f"gate row and bias are zero and {facts.activation}(0) = 0"
        yield Death("mlp_units", facts.zeros[GATE].silent_rows, cause)
