"""Results in the user's cache, as JSON under a hash of everything that shapes them.

A cache that cannot be read or written costs a repetition, not the run.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sgate_serve.checkpoint.writer import replace_text
from sgate_serve.environment import cache_dir


def cached_file(kind: str, key: Mapping[str, Any]) -> Path:
    """Return where the cache keeps the result of a kind that has this key."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / kind / f"{name}.json"


def read_cached(file: Path) -> Any:
    """Return the value in a file of the cache, or None if it is missing or no JSON."""
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None


def write_cached(file: Path, value: Any) -> None:
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(value) + "\n")
