"""Rule 11: the units on top of an encoder are an ungated MLP of their own."""

from collections.abc import Iterator

from converters.rules.facts import Death, ModelFacts


def dead_head_units(facts: ModelFacts) -> Iterator[Death]:
    """A unit between the last hidden state and the classifier dies as an MLP unit does.

    11a. Its column in the outer linear is zero: nobody reads it.
    11b. Its row is zero and the activation of its bias too: it says nothing.
    11c. Its row is zero: act(b) is a constant and moves into the outer bias (rule 2).
    Zero rows of the classifier itself are not dead: a logit of 0 competes.
    """
    dense = facts.spec.head.dense
    if dense is None or facts.inner is None or facts.outer is None:
        return
    yield Death("head_units", facts.outer.columns, "classifier column is zero")
    cause = f"row is zero and {dense.activation} of its bias too"
    yield Death("head_units", facts.inner.inactive_rows(dense.activation), cause)
    yield Death(
        "head_units", facts.inner.rows, "row is zero: a constant", constant=facts.inner.rows
    )
