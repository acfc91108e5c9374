"""The metadata of a graph file, read by name, and what to say of a graph that is damaged."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief

import onnxruntime as ort

from sgate_serve.errors import EngineError
from sgate_serve.json_fields import MAX_SIZE

REMEDY = "convert the model again"
REMEDY_IN_CACHE = "delete this folder, and it is built again"
NO_MEMORY = re.compile(r"[Ff]ailed to allocate|bad_alloc|out of memory")


@dataclass(frozen=True)
class GraphMetadata:
    """The metadata_props of the graph file `source`. Whatever is malformed raises EngineError."""

    values: Mapping[str, str]
    source: Path

    def text(self, key: str, choices: Sequence[str] = ()) -> str:
        """Return a value that must be there, and one of `choices` if there are any."""
        if key not in self.values:
            raise EngineError(f"{self.source}: metadata {key} is missing; {REMEDY}")
        if choices and self.values[key] not in choices:
            raise self._malformed(key, f"one of {', '.join(choices)}")
        return self.values[key]

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        """Return a whole number of at least `least`; `default` if the key may be missing, as is."""
        if default is not None and key not in self.values:
            return default
        number = self._integer(key)
        if number is None or number < least:
            raise self._malformed(key, f"a whole number of at least {least}")
        return number

    def optional_integer(self, key: str) -> int | None:
        """Return an integer of either sign; None for an empty value."""
        if not self.text(key):
            return None
        number = self._integer(key)
        if number is None:
            raise self._malformed(key, "an integer")
        return number

    def _integer(self, key: str) -> int | None:
        text = self.text(key)
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or abs(int(text)) > MAX_SIZE:
            return None
        return int(text)

    def _malformed(self, key: str, words: str) -> EngineError:
        found = brief(self.values[key])
        return EngineError(f"{self.source}: metadata {key} is {found}, not {words}; {REMEDY}")


def cannot_run(graph: Path, error: Exception) -> EngineError:
    """Return the error for a loaded graph that ONNX Runtime fails to run."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    remedy = "free some memory, or ask for less of it" if NO_MEMORY.search(reason) else REMEDY
    return EngineError(
        f"{graph}: ONNX Runtime {ort.__version__} cannot run it ({reason}); {remedy}"
    )
