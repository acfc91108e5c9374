from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sgate_serve.server.execution.stop_strings import StopStrings

LETTERS = st.text("abc", max_size=20)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    watch = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += watch.push(piece)
        if watch.found:
            return text, True
    return text + watch.flush(), False


def cut_by_reading_letters(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: read letter by letter, cut before the longest stop string that ends there."""
    for end in range(1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))], True
    return text, False


@given(LETTERS, STOPS, st.lists(st.integers(0, 20)))
def test_result_is_that_of_reading_letter_by_letter(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    bounds = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    assert shown(pieces, stops) == cut_by_reading_letters(text, stops)


def test_only_what_may_begin_a_stop_string_is_held() -> None:
    watch = StopStrings(["stop!"])
    assert watch.push("go st") == "go "
    assert watch.push("o") == ""
    assert watch.push("nes") == "stone"
    assert watch.flush() == "s"
