"""Rule 11: units on top of an encoder, an ungated MLP between its stack and its classifier."""

from collections.abc import Iterator

from converters.rules.findings import ModelFinding, ModelView


def dead_head_units(view: ModelView) -> Iterator[ModelFinding]:
    """Remove units on top as rules 1 and 2 remove MLP units (rule 11).

    1. The unit's column in the outer linear is zero: nothing reads it.
    2. Its row is zero, and so is the activation of its bias: the unit is always zero.
    3. Its row is zero: act(b) is a constant, which moves into the outer bias (rule 2).
    4. At least one unit stays.
    5. No norm is between the units and the outer linear (ModernBERT): it divides each unit by the
       spread of all, those that are zero or not read included.
    Zero rows of the classifier are *not* dead: a logit of 0 competes with the others.
    """
    facts = view.facts
    dense = facts.spec.head.dense
    if dense is None or dense.norm is not None or facts.inner is None or facts.outer is None:
        return
    yield ModelFinding("head_units", facts.outer.columns, "classifier column is zero")
    cause = f"row is zero and {dense.activation} of its bias too"
    yield ModelFinding("head_units", facts.inner.inactive_rows(dense.activation), cause)
    constant = facts.inner.rows
    yield ModelFinding("head_units", constant, "row is zero: a constant", constant=constant)
