"""Progress on stderr: what is being done, how far it is, how fast, and the time left.

On a terminal one line is rewritten in place and stays when the activity ends. Elsewhere, as in a
log, lines are written at growing intervals. Of several processes that `torchrun` starts, the first
reports.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from threading import Event, RLock, Thread
from typing import TypeVar

Item = TypeVar("Item")

# The interval between lines of a log: a share of the time so far, within limits.
LOG_SHARE, LOG_SECONDS, LONGEST_LOG_SECONDS = 0.05, 5.0, 60.0
TICK_SECONDS = TERMINAL_SECONDS = 0.5
# An activity that is no news of its own leaves a line only if it took as long as this.
BRIEF_SECONDS = 5.0
DAY = 24 * 60 * 60

_LOCK = RLock()


class Activity:
    """Something that takes time, reported until it ends: its name, counts and values."""

    def __init__(self, name: str, is_brief: bool = False) -> None:
        self.name, self.is_brief = name, is_brief
        self.started = self._counted_from = self._counted_at = time.monotonic()
        self.done, self.total, self.unit = 0, 0, ""
        self.values: dict[str, float] = {}
        self._first = 0
        self._shown_at, self._has_lines = self.started, False

    def report(self, done: int, total: int, unit: str, **values: float) -> None:
        """Say that `done` of `total` units are done; the first call says where counting starts."""
        with _LOCK:
            self._counted_at = time.monotonic()
            if not self.unit:
                self._first, self._counted_from = done, self._counted_at
            self.done, self.total, self.unit = done, total, unit
            self.values |= values

    def line(self) -> str:
        """Return the state as text: "gates 120/600 (20%), loss 3.21, 0.80 s/step, 6 min left"."""
        now = time.monotonic()
        elapsed = now - self.started
        if not self.total:
            return f"{self.name}, {duration(elapsed)}" if elapsed >= 1 else self.name
        parts = [f"{self.name} {self.done:,}/{self.total:,} ({self.done / self.total:.0%})"]
        parts += self._values()
        if self.done > self._first:
            seconds = (self._counted_at - self._counted_from) / (self.done - self._first)
            # The unit at work counts as done when it should be, but the ones after it do not.
            left = seconds * (self.total - self.done) - min(seconds, now - self._counted_at)
            parts += [_speed(seconds, self.unit)]
            # Where none is left, the last one is slow, or what comes of them takes a while.
            parts += [f"{duration(left)} left" if left > 0 else duration(elapsed)]
        return ", ".join(parts)

    def last_line(self) -> str:
        """Return what was done as text: "gates: 600 steps in 8 min, loss 3.10"."""
        elapsed = duration(time.monotonic() - self.started)
        if not self.total:
            return f"{self.name}: {elapsed}"
        count = self.done - self._first
        counted = f"{count:,} {self.unit if count == 1 else plural(self.unit)}"
        return ", ".join([f"{self.name}: {counted} in {elapsed}", *self._values()])

    def _values(self) -> list[str]:
        """Return each value after its name, or before it if that is a unit such as tokens/s."""
        texts = {name: _number(value) for name, value in self.values.items()}
        return [f"{v} {name}" if "/" in name else f"{name} {v}" for name, v in texts.items()]

    def tick(self) -> None:
        """Show the line if it is time to."""
        now = time.monotonic()
        interval = TERMINAL_SECONDS
        if not sys.stderr.isatty():
            share = LOG_SHARE * (now - self.started)
            interval = min(max(share, LOG_SECONDS), LONGEST_LOG_SECONDS)
        if now - self._shown_at >= interval:
            self._shown_at = now
            self.show()

    def show(self) -> None:
        self._has_lines = True
        _write(self.line(), is_last=not sys.stderr.isatty())

    def end(self) -> None:
        """Leave a line about the activity, or none if it was brief."""
        took = time.monotonic() - self.started
        if not self.is_brief or took >= BRIEF_SECONDS:
            _write(self.last_line(), is_last=True)
        elif self._has_lines and sys.stderr.isatty():
            _write("", is_last=False)

    def fail(self) -> None:
        """Leave the last state on a terminal, so that an error is a line of its own."""
        if self._has_lines and sys.stderr.isatty():
            _write(self.line(), is_last=True)


# The activities that are open, the innermost last; only that one is shown.
_OPEN: list[Activity] = []


@contextmanager
def activity(name: str, *, is_brief: bool = False) -> Iterator[Activity]:
    """Report an activity while the context lasts.

    `is_brief` ones are shown, but leave no line if they were short. Nor does one that fails,
    except on a terminal, where its last state stays.
    """
    opened, stop = Activity(name, is_brief), Event()
    if os.environ.get("RANK", "0") != "0":
        yield opened
        return
    with _LOCK:
        _OPEN.append(opened)
    is_terminal = sys.stderr.isatty()
    if is_terminal:
        opened.show()
    ticker = Thread(target=_tick_until, args=(opened, stop), daemon=True)
    ticker.start()
    try:
        with _logging_on_lines_of_its_own() if is_terminal else nullcontext():
            yield opened
    except BaseException:
        _close(opened, stop, ticker)
        opened.fail()
        raise
    _close(opened, stop, ticker)
    opened.end()


def counted(items: Iterable[Item], unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, counted as `unit` on the activity that is open, if any.

    `total` is the number of items, by default their length.
    """
    size = total if total is not None else len(items) if isinstance(items, Sized) else 0
    opened = _OPEN[-1] if _OPEN else None
    if opened is not None:
        opened.report(0, size, unit)
    for number, item in enumerate(items, 1):
        yield item
        if opened is not None:
            opened.report(number, size, unit)


def duration(seconds: float) -> str:
    """Return a duration as text: "0.4 s", "42 s", "6 min" or "1 h 12 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def age_of(time_of: str) -> str:
    """Return how long ago a time (ISO 8601, with its zone) was, as text: "3 days ago"."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time_of)).total_seconds()
    return f"{seconds // DAY:.0f} days ago" if seconds > 2 * DAY else f"{duration(seconds)} ago"


def plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def _speed(seconds: float, unit: str) -> str:
    if seconds < 0.1:
        return f"{1 / max(seconds, 1e-9):,.0f} {plural(unit)}/s"
    return f"{_number(seconds, 2)} s/{unit}"


def _number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, and no exponent if it is large."""
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _tick_until(opened: Activity, stop: Event) -> None:
    while not stop.wait(TICK_SECONDS):
        with _LOCK:
            if _OPEN and _OPEN[-1] is opened:
                opened.tick()


class _LineCleared(logging.Filter):
    """Clears the line of an activity before a record is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        _write("", is_last=False)
        return True


@contextmanager
def _logging_on_lines_of_its_own() -> Iterator[None]:
    cleared, handlers = _LineCleared(), logging.getLogger().handlers
    handlers = [each for each in handlers if getattr(each, "stream", None) is sys.stderr]
    for handler in handlers:
        handler.addFilter(cleared)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(cleared)


def _close(opened: Activity, stop: Event, ticker: Thread) -> None:
    stop.set()
    ticker.join()
    with _LOCK:
        _OPEN.remove(opened)


def _write(line: str, *, is_last: bool) -> None:
    """Write a line; on a terminal it takes the place of the one before, unless that was a last."""
    # A reader of stderr that has gone must not end the work.
    with _LOCK, suppress(OSError, ValueError):
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns
            line = f"\r{line[: width - 1]}\x1b[K"
        sys.stderr.write(f"{line}\n" if is_last else line)
        sys.stderr.flush()
