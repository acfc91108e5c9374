"""Reads tool calls in the text of a model, piece by piece; the result is the same for all pieces.

A call has the name of a tool that was offered, and a JSON object of arguments, which is passed on
as the model wrote it. Everything else is content, character for character, except for white space
around calls, and for what separates calls or ends their block.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from sgate_serve.text.call_values import JsonEnd, WrittenCall, calls_in, is_object
from sgate_serve.text.overlap import overlap
from sgate_serve.text.tool_formats import ToolFormat

# Newer Mistral models write the name of a call, and perhaps its id, before the object.
NAMED = re.compile(r"([^\s\[{]+)\s*(?:\[CALL_ID\][^\s\[{]*\s*)?(?:\[ARGS\])?\s*")
MAX_NAMED = 512
SEPARATED = re.compile(r"([;,]?\s*)(.?)", re.DOTALL)


@dataclass(frozen=True)
class CallPiece:
    """A part of one call: the first has its id and name, the others the text of its arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Parsed:
    """What a piece of text adds to an answer."""

    content: str
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True)
class CallOptions:
    """How the calls of a request are read.

    Where the text `is_constrained` by a grammar, arguments are passed on while they are written,
    else once they are known to be valid. Without `is_parallel`, only the first call counts. An
    answer that `must_call` has no text, even if it is cut off before its first call.
    """

    format: ToolFormat
    names: frozenset[str]
    is_constrained: bool = False
    is_parallel: bool = True
    must_call: bool = False


class CallParser:
    """Divides the text of one choice into content and calls.

    Each state reads from the front of the held text, and says whether it may get any further.
    """

    def __init__(self, options: CallOptions) -> None:
        self._options, self._format = options, options.format
        self._heads = {self._format.head(name): name for name in options.names}
        self._state: Callable[[], bool] = self._in_text
        self._held = ""
        # What was read of a block, which becomes content if there is no call in it.
        self._doubtful: list[str] = []
        self._may_be_bare = self._format.is_bare
        self._in_list = False
        self._json = JsonEnd()
        self._value: list[str] = []
        self._name: str | None = None
        self._content: list[str] = []
        self._pieces: list[CallPiece] = []
        self.num_calls = 0

    def push(self, text: str) -> Parsed:
        """Return what is certain with this text."""
        self._held += text
        while self._state():
            pass
        return self._take()

    def finish(self) -> Parsed:
        """Return what was held back, at the end of the text."""
        if self._state in (self._in_text, self._in_value, self._in_json):
            rest = "".join((*self._doubtful, self._held))
            self._content.append("" if self._is_between_calls(rest) else rest)
        return self._take()

    def _is_between_calls(self, rest: str) -> bool:
        """Say whether the last text belongs to a call: space after one, or a grammar's next one."""
        if self._options.must_call:
            return True
        if not self._options.is_constrained:
            return self.num_calls > 0 and rest.isspace()
        return self.num_calls > 0 or (self._state == self._in_value and not self._format.is_bare)

    def _take(self) -> Parsed:
        taken = Parsed("".join(self._content), tuple(self._pieces))
        self._content, self._pieces = [], []
        return taken

    def _in_text(self) -> bool:
        """Show text up to a marker; the space before it is dropped if a call follows."""
        begin, stripped = self._format.begin, self._held.lstrip()
        if self._may_be_bare and stripped:
            self._may_be_bare = False
            if stripped.startswith("{"):
                self._state = self._in_value
                return True
        place = self._held.find(begin)
        end = place if place >= 0 else len(self._held) - overlap(self._held, begin)
        shown = self._held[:end].rstrip()
        self._content.append(shown)
        self._held = self._held[len(shown) :]
        if place < 0:
            return False
        self._doubt(place - len(shown) + len(begin))
        self._state = self._in_value
        return True

    def _in_value(self) -> bool:
        """Read up to the arguments of a call, or to the JSON value that has calls."""
        self._doubt(len(self._held) - len(self._held.lstrip()))
        if not self._held:
            return False
        if self._options.is_constrained:
            if self._format.is_array and not self._in_list and self._held[0] == "[":
                self._in_list = True
                self._doubt(1)
                return True
            found = [head for head in self._heads if _agree(head, self._held)]
            if found:
                return self._start_at(found)
        if self._held[0] in "{[":
            return self._read_json()
        return self._after_name() if self._format.may_begin_with_name else self._give_up()

    def _start_at(self, heads: list[str]) -> bool:
        """Begin the call of which the whole head is there, of those that it may be."""
        whole = next((head for head in heads if self._held.startswith(head)), None)
        if whole is None:
            return False
        self._held = self._held[len(whole) :]
        self._begin_call(self._heads[whole])
        self._json, self._state = JsonEnd(), self._in_arguments
        return True

    def _after_name(self) -> bool:
        """Read the name that stands before an object."""
        place = self._held.find("{")
        if place < 0 and len(self._held) <= MAX_NAMED:
            return False
        found = NAMED.fullmatch(self._held, 0, place) if 0 <= place <= MAX_NAMED else None
        if found is None or found[1] not in self._options.names:
            return self._give_up()
        self._name = found[1]
        self._doubt(place)
        return self._read_json()

    def _read_json(self) -> bool:
        self._json, self._value, self._state = JsonEnd(), [], self._in_json
        return True

    def _in_json(self) -> bool:
        """Read a value to its end, and then its calls if it is valid."""
        end = self._json.feed(self._held)
        self._value.append(self._held[:end])
        self._doubt(len(self._value[-1]))
        if end is None:
            return False
        calls = self._calls("".join(self._value))
        if calls is None:
            return self._give_up()
        for call in calls:
            self._begin_call(call.name)
            self._add(call.arguments)
        self._state = self._after_call
        return True

    def _calls(self, value: str) -> list[WrittenCall] | None:
        if self._name is None:
            return calls_in(value, self._options.names)
        call, self._name = WrittenCall(self._name, value), None
        return [call] if is_object(value) else None

    def _in_arguments(self) -> bool:
        end = self._json.feed(self._held)
        self._add(self._held[:end])
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return False
        self._state = self._in_tail
        return True

    def _in_tail(self) -> bool:
        tail = self._format.tail
        if not self._held.startswith(tail):
            return False  # as the text is constrained, it comes with the next piece
        self._held, self._state = self._held[len(tail) :], self._after_call
        return True

    def _after_call(self) -> bool:
        """Read what stands after a call: another one, the end of a list or of a block, or text."""
        end, stripped = self._format.end, self._held.lstrip()
        if not stripped:
            return False
        if self._in_list:
            self._in_list = stripped[0] == ","
            self._held = stripped[1:]
            if self._in_list:
                self._state = self._in_value
            return True
        if end and _agree(end, stripped):
            if not stripped.startswith(end):
                return False
            self._held = stripped[len(end) :]
        elif self._format.is_bare:
            found = SEPARATED.match(stripped)
            assert found is not None
            if not found[2]:
                return False
            if found[2] == "{":
                self._doubt(len(self._held) - len(stripped) + found.end(1))
                self._state = self._in_value
                return True
        self._state = self._in_text
        return True

    def _doubt(self, length: int) -> None:
        """Put the front of the held text aside."""
        self._doubtful.append(self._held[:length])
        self._held = self._held[length:]

    def _give_up(self) -> bool:
        """Make content of a block without calls."""
        self._content.extend(self._doubtful)
        self._doubtful, self._name, self._in_list = [], None, False
        self._state = self._in_text
        return True

    def _begin_call(self, name: str) -> None:
        self._doubtful = []
        self.num_calls += 1
        self._piece(CallPiece(self.num_calls - 1, id=self._format.new_id(), name=name))

    def _add(self, arguments: str) -> None:
        if arguments:
            self._piece(CallPiece(self.num_calls - 1, arguments))

    def _piece(self, piece: CallPiece) -> None:
        if piece.index == 0 or self._options.is_parallel:
            self._pieces.append(piece)


def _agree(first: str, second: str) -> bool:
    """Say whether one text begins with the other."""
    return first.startswith(second) or second.startswith(first)
