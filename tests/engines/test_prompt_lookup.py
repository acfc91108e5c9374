"""Drafts against a search by hand."""

import numpy as np
import pytest

from sgate_serve.engines.prompt_lookup import drafted


@pytest.mark.parametrize(
    ("tokens", "count", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 2, (4, 5)),
        ([1, 2, 3, 4, 5, 1, 2, 3], 9, (4, 5, 1, 2, 3)),
        # The last of several places, and three tokens before two.
        ([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1, (8,)),
        ([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 1, (7,)),
        ([9, 2, 3, 7, 1, 2, 3], 1, (7,)),
        # A place may overlap the end.
        ([5, 5, 5, 5], 2, (5,)),
        ([1, 2, 3, 4], 3, ()),
        ([1, 2], 3, ()),
        ([], 3, ()),
        ([1, 2, 1, 2], 0, ()),
    ],
)
def test_drafts_follow_the_last_place_that_went_alike(
    tokens: list[int], count: int, expected: tuple[int, ...]
) -> None:
    assert drafted(tokens, count) == expected


def test_any_draft_is_what_followed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        tokens = rng.integers(0, 4, int(rng.integers(1, 30))).tolist()
        draft = drafted(tokens, 4)
        places = [
            start
            for size in (3, 2)
            for start in range(len(tokens) - size)
            if tokens[start : start + size] == tokens[-size:] and len(tokens) > size
        ]
        assert bool(draft) == bool(places)
        text = " ".join(map(str, tokens))
        assert not draft or " ".join(map(str, [*tokens[-2:], *draft])) in text
