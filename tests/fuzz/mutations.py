"""Seeded mutations of files that a user can pass: JSON, safetensors headers, raw bytes.

A mutator takes the bytes of a file and a generator and returns other bytes; one seed gives one
result.
"""

import json
import math
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

# json.dumps cannot write nesting as deep, or integers as long, as those of a hostile file.
DEEP, LONG = "@deep@", "@long@"
OVERSIZED = {DEEP: "[" * 5000 + "]" * 5000, LONG: "9" * 5000}
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 7, 2**31, 2**63, 2**64 - 1, 10**30, 10**400),
    *(0.5, 2.0, -1.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "3", "abc", "../x", "a/b", "nul\0", "é\ud800", "x" * 300, DEEP, LONG),
    *([], [[]], [None], ["a"], [0, 1], [1, 0], [-1], {}, {"a": 1}, {"0": {}}),
)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Drop, rename, repeat, retype or replace one to three nodes of a JSON document."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _mutate_node(value, rng)
    text = json.dumps(value)
    for placeholder, oversized in OVERSIZED.items():
        text = text.replace(json.dumps(placeholder), oversized)
    return text.encode()


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """Mutate the JSON of a safetensors header; its length and the tensor data stay valid."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutate_json(data[8:end], rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, delete or repeat bytes anywhere."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _edit(data, rng, len(data))
    return data


def mutate_header_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, delete or repeat bytes of a safetensors header or of its length."""
    return _edit(data, rng, 8 + int.from_bytes(data[:8], "little"))


def mutate_values(data: bytes, rng: random.Random) -> bytes:
    """Overwrite bytes of the tensor data of a safetensors file."""
    start = rng.randrange(8 + int.from_bytes(data[:8], "little"), len(data))
    return data[:start] + rng.randbytes(min(4, len(data) - start)) + data[start + 4 :]


def _edit(data: bytes, rng: random.Random, end: int) -> bytes:
    start = rng.randrange(max(1, min(end, len(data))))
    stop = min(len(data), start + rng.randint(1, 12))
    replacements = (
        rng.randbytes(stop - start),
        rng.randbytes(rng.randint(1, 8)) + data[start:stop],
        b"",
        data[start:stop] * 2,
        bytes([rng.choice(b'{}[]",:0-9eE.tfn\\')]),
    )
    if rng.random() < 0.1:
        return data[:start]
    return data[:start] + rng.choice(replacements) + data[stop:]


def _mutate_node(root: Any, rng: random.Random) -> Any:
    """Return a copy of `root` in which one node, chosen by a random descent, is changed."""
    root = deepcopy(root)
    if not isinstance(root, dict | list) or not root or rng.random() < 0.02:
        return rng.choice(JUNK)
    node = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        child = node[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.3:
            break
        node = child
    rng.choice((_drop, _rename, _retype, _replace, _replace, _replace))(node, key, rng)
    return root


def _drop(node: Any, key: Any, rng: random.Random) -> None:
    del node[key]


def _rename(node: Any, key: Any, rng: random.Random) -> None:
    if isinstance(node, dict):
        node[rng.choice(("0", "-1", "00", "x", "", "99", str(key) + "s"))] = node.pop(key)
    else:
        node.insert(rng.randrange(len(node) + 1), node[key])


def _retype(node: Any, key: Any, rng: random.Random) -> None:
    """Keep the value and change its type: a number to a string, a list to an object, …"""
    value = node[key]
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    changes: list[Callable[[], Any]] = [lambda: str(value), lambda: [value], lambda: {"0": value}]
    if numbers:
        changes += [lambda: float(value), lambda: -value, lambda: value + 1, lambda: bool(value)]
    if isinstance(value, list):
        changes += [lambda: dict(enumerate(value)), lambda: value[:-1], lambda: value + value]
    node[key] = rng.choice(changes)()


def _replace(node: Any, key: Any, rng: random.Random) -> None:
    node[key] = deepcopy(rng.choice(JUNK))
