"""The JSON values in which models write tool calls: where one ends, and the calls that it has."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NoReturn

IN_STRING, OUTSIDE = re.compile(r'["\\]'), re.compile(r'["{}\[\]]')
# What stands between the parts of an object or a list that is known to be valid.
BETWEEN = re.compile(r"[ \t\n\r,:]*")
# Models take the one for the other.
ARGUMENT_KEYS = ("arguments", "parameters")


class JsonEnd:
    """Finds the end of an object or a list by its brackets."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False

    def feed(self, text: str) -> int | None:
        """Return where the value ends in this piece of it; None if it goes on."""
        place = 0
        while place < len(text):
            if self._is_escaped:
                self._is_escaped, place = False, place + 1
                continue
            found = (IN_STRING if self._in_string else OUTSIDE).search(text, place)
            if found is None:
                return None
            place = found.end()
            if found[0] == "\\":
                self._is_escaped = True
            elif found[0] == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if found[0] in "{[" else -1
                if self._depth == 0:
                    return place
        return None


@dataclass(frozen=True)
class WrittenCall:
    """A call as the model wrote it; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


def is_object(text: str) -> bool:
    """Say whether a text is a JSON object."""
    try:
        return isinstance(_DECODER.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def calls_in(text: str, names: Collection[str]) -> list[WrittenCall] | None:
    """Return the calls of an object or of a list of objects; None if anything in it is no call.

    A call has one of the `names`, and an object as its arguments.
    """
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    written = list(_parts(text)) if isinstance(value, list) else [text]
    calls = [_call(own, names) for own in written]
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(calls) else None


def _call(text: str, names: Collection[str]) -> WrittenCall | None:
    if not text.startswith("{"):
        return None
    parts = list(_parts(text))
    members = {json.loads(key): value for key, value in zip(parts[::2], parts[1::2], strict=True)}
    arguments = next((members[key] for key in ARGUMENT_KEYS if key in members), "")
    name = json.loads(members.get("name", "null"))
    is_call = isinstance(name, str) and name in names and arguments.startswith("{")
    return WrittenCall(name, arguments) if is_call else None


def _parts(text: str) -> Iterator[str]:
    """Yield the texts of a list's items, or of an object's keys and values by turns."""
    place = _after_space(text, 1)
    while place < len(text) - 1:
        _, end = _DECODER.raw_decode(text, place)
        yield text[place:end]
        place = _after_space(text, end)


def _after_space(text: str, place: int) -> int:
    found = BETWEEN.match(text, place)
    assert found is not None
    return found.end()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
