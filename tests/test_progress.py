"""Progress on stderr: what a line says, when it is written, and what stays."""

import io
import logging
import time
from types import SimpleNamespace

import pytest

from sgate_serve import progress
from sgate_serve.progress import Activity, activity, counted, duration


class Clock:
    """Stands in for the time module: time passes only when a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed:
    """A stream whose reader has gone."""

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> None:
        raise BrokenPipeError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    # The threads of activities wait for as long as a test lasts.
    monkeypatch.setattr(progress, "TICK_SECONDS", 1000.0)
    return clock


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setenv("COLUMNS", "60")
    return stream


def test_line_has_count_share_values_speed_and_time_left(clock: Clock) -> None:
    shown = Activity("gates")
    assert shown.line() == "gates"
    clock.now += 2.5
    assert shown.line() == "gates, 2.5 s"
    shown.report(0, 600, "step")
    assert shown.line() == "gates 0/600 (0%)"
    clock.now += 96
    shown.report(120, 600, "step", loss=3.2149)
    assert shown.line() == "gates 120/600 (20%), loss 3.21, 0.8 s/step, 6 min left"
    # While one step takes long, the speed stays, and the others still take their time.
    clock.now += 84
    assert shown.line() == "gates 120/600 (20%), loss 3.21, 0.8 s/step, 6 min left"
    assert shown.last_line() == "gates: 120 steps in 3 min, loss 3.21"


def test_speed_of_a_resumed_activity_counts_only_its_own_units(clock: Clock) -> None:
    shown = Activity("recovery")
    shown.report(500, 600, "step")
    clock.now += 2
    shown.report(540, 600, "step")
    assert shown.line() == "recovery 540/600 (90%), 20 steps/s, 3.0 s left"
    assert shown.last_line() == "recovery: 40 steps in 2.0 s"


def test_after_the_last_unit_the_line_says_how_long_it_has_taken(clock: Clock) -> None:
    shown = Activity("measuring")
    shown.report(0, 2, "batch")
    clock.now += 30
    shown.report(2, 2, "batch")
    clock.now += 12
    assert shown.line() == "measuring 2/2 (100%), 15 s/batch, 42 s"
    assert shown.last_line() == "measuring: 2 batches in 42 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3570, "1 h 0 min"),
        (4320, "1 h 12 min"),
    ],
)
def test_durations_round_to_a_unit_one_wants_to_read(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_log_gets_a_line_every_five_seconds_and_later_fewer(clock: Clock, log: io.StringIO) -> None:
    shown, written = Activity("training"), []
    for _ in range(3600):
        clock.now += 1
        before = log.tell()
        shown.tick()
        written += [clock.now - shown.started] if log.tell() > before else []
    gaps = [after - before for before, after in zip([0.0, *written], written, strict=False)]
    assert set(gaps[:20]) == {5}
    assert gaps == sorted(gaps) and gaps[-1] == 60
    assert log.getvalue().startswith("training, 5.0 s\ntraining, 10 s\n")


def test_log_of_a_short_activity_is_its_last_line(clock: Clock, log: io.StringIO) -> None:
    with activity("measuring"):
        clock.now += 0.3
    assert log.getvalue() == "measuring: 0.3 s\n"


@pytest.mark.parametrize(("seconds", "text"), [(4, ""), (6, "loading: 6.0 s\n")])
def test_brief_activity_leaves_a_line_only_if_it_took_long(
    seconds: float, text: str, clock: Clock, log: io.StringIO
) -> None:
    with activity("loading", is_brief=True):
        clock.now += seconds
    assert log.getvalue() == text


def test_terminal_shows_one_line_in_place_and_keeps_the_last(
    clock: Clock, terminal: Terminal
) -> None:
    with activity("scoring") as shown:
        for _ in counted([1, 2], "batch"):
            clock.now += 1
            shown.tick()
    assert terminal.getvalue().split("\r")[1:] == [
        "scoring\x1b[K",
        "scoring 0/2 (0%)\x1b[K",
        "scoring 1/2 (50%), 1 s/batch, 2.0 s\x1b[K",
        "scoring: 2 batches in 2.0 s\x1b[K\n",
    ]


def test_terminal_clears_the_line_of_a_brief_activity_and_cuts_long_ones(
    clock: Clock, terminal: Terminal
) -> None:
    with activity("a" * 70, is_brief=True):
        pass
    assert terminal.getvalue() == f"\r{'a' * 59}\x1b[K\r\x1b[K"


def test_log_record_clears_the_line_of_an_activity(clock: Clock, terminal: Terminal) -> None:
    handler, logger = logging.StreamHandler(terminal), logging.getLogger()
    logger.addHandler(handler)
    try:
        with activity("scoring", is_brief=True):
            logging.getLogger("sgate_serve").warning("slow disk")
        logging.getLogger("sgate_serve").warning("later")
    finally:
        logger.removeHandler(handler)
    assert terminal.getvalue() == "\rscoring\x1b[K\r\x1b[Kslow disk\n\r\x1b[Klater\n"


def test_inner_activity_is_shown_alone_and_counts_are_its_own(
    clock: Clock, log: io.StringIO
) -> None:
    with activity("outer") as outer, activity("inner") as inner:
        assert list(counted(iter("ab"), "letter", total=2)) == ["a", "b"]
    assert (inner.done, inner.total, outer.total) == (2, 2, 0)
    assert log.getvalue() == "inner: 2 letters in 0.0 s\nouter: 0.0 s\n"
    assert list(counted([3], "number")) == [3]


def test_failure_leaves_nothing_in_a_log_and_the_last_state_on_a_terminal(
    clock: Clock, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with activity("reading"):
            clock.now += 2
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert log.getvalue() == ""
    terminal = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=terminal))
    with pytest.raises(OSError, match="gone"):
        fail()
    assert terminal.getvalue() == "\rreading\x1b[K\rreading, 2.0 s\x1b[K\n"


def test_only_the_first_of_several_processes_reports(
    clock: Clock, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with activity("gates"):
        assert list(counted([1], "step")) == [1]
    assert log.getvalue() == ""


def test_reader_that_has_gone_does_not_end_the_work(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Closed()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=closed))
    with activity("gates") as shown:
        shown.show()


def test_activity_that_reports_nothing_is_shown_all_the_same(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real clock: the thread writes while the work is silent."""
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.01)

    with activity("compiling"):
        deadline = time.monotonic() + 60
        while not log.getvalue() and time.monotonic() < deadline:
            time.sleep(0.001)
    assert log.getvalue().startswith("compiling\n")
