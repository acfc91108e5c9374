"""The import graph: which room may import which, read from the sources, lazy imports included.

A room is a folder or a module directly under `sgate_serve/`, or `converters/`. docs/architecture.md
draws them.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("sgate_serve", "converters")
MAX_ROOMS = 25
# A name in `sgate_serve` that has no room of its own → the room that it belongs to.
RENAMED = {"__version__": "__init__", "__main__": "cli"}

# room → the other rooms that it may import, inside functions too.
FOUNDATION = {"errors", "json_fields", "options", "environment", "progress"}
CORE = FOUNDATION | {"architecture", "checkpoint", "plan"}
ROOMS: Mapping[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "options": set(),
    "progress": set(),
    "environment": {"errors"},
    "json_fields": {"errors"},
    "architecture": {"errors", "json_fields"},
    "text": {"errors", "json_fields"},
    "checkpoint": {"errors", "json_fields", "environment", "progress", "architecture", "text"},
    "plan": {"errors", "json_fields", "architecture"},
    "gates": CORE,
    "models": CORE | {"text"},
    "onnx_format": CORE,
    "data": CORE | {"text"},
    "converters": CORE | {"gates", "models", "onnx_format", "text"},
    "engines": CORE | {"models", "onnx_format", "text"},
    "training": CORE | {"converters", "data", "gates", "models"},
    "server": FOUNDATION | {"__init__", "engines", "text"},
    "loaders": CORE | {"__init__", "converters", "engines", "models", "onnx_format", "text"},
    "bench": CORE | {"engines", "loaders", "onnx_format"},
    "verify": CORE
    | {"converters", "data", "engines", "gates", "loaders", "models"}
    | {"onnx_format", "text"},
    "reports": CORE
    | {"bench", "converters", "data", "engines", "loaders", "onnx_format", "verify"},
    "demo": CORE
    | {"bench", "converters", "data", "gates", "models", "reports", "training", "verify"},
    "commands": CORE
    | {"bench", "converters", "demo", "engines", "loaders", "reports", "server"}
    | {"training", "verify"},
    # Commands are imported by name, so that `--help` stays light.
    "cli": {"__init__", "environment", "errors"},
}

# Parts of rooms with stricter rules: path → prefixes of our modules that it may import.
NARROW: Mapping[str, tuple[str, ...]] = {
    # The rules know masks and shapes, not files.
    "converters/rules": (
        "converters.rules",
        "converters.float_bits",
        "sgate_serve.architecture",
        "sgate_serve.checkpoint.tensor_files",
        "sgate_serve.errors",
        "sgate_serve.plan",
    ),
    # The server knows requests and token events; it receives loaded engines.
    "sgate_serve/server": (
        "sgate_serve.__version__",
        "sgate_serve.engines.contract",
        "sgate_serve.environment",
        "sgate_serve.errors",
        "sgate_serve.json_fields",
        "sgate_serve.options",
        "sgate_serve.server",
        "sgate_serve.text",
    ),
}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "sgate_serve":
            yield from (f"sgate_serve.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(module: str) -> str:
    """Return the room of a dotted module name of ours."""
    top, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return "converters" if top == "converters" else RENAMED.get(name, name)


def room_files() -> Iterator[tuple[str, Path]]:
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield room_of(".".join(parts)), path


def own_imports(path: Path) -> Iterator[str]:
    yield from (module for module in imported(path) if module.partition(".")[0] in OURS)


def test_rooms_import_only_permitted_rooms() -> None:
    strays = [
        f"{path.relative_to(ROOT)} imports {module}"
        for room, path in room_files()
        for module in own_imports(path)
        if room_of(module) not in ROOMS[room] | {room}
    ]
    assert strays == []


def test_the_graph_has_few_rooms_and_no_cycle() -> None:
    assert {room for room, _ in room_files()} == set(ROOMS)
    assert len(ROOMS) <= MAX_ROOMS
    assert list(TopologicalSorter(ROOMS).static_order())  # raises CycleError


def test_every_permission_is_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for room, path in room_files():
        used[room] |= {room_of(module) for module in own_imports(path)}
    unused = {
        room: sorted(allowed - used[room] - CORE)
        for room, allowed in ROOMS.items()
        if allowed - used[room] - CORE
    }
    assert unused == {}


@pytest.mark.parametrize("place", NARROW)
def test_parts_with_stricter_rules_follow_them(place: str) -> None:
    files = sorted((ROOT / place).rglob("*.py"))
    assert files
    strays = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in own_imports(file)
        if not any(module == prefix or module.startswith(f"{prefix}.") for prefix in NARROW[place])
    ]
    assert strays == []


def test_training_imports_only_rules_and_importers_of_the_converter() -> None:
    used = {
        module
        for room, path in room_files()
        for module in own_imports(path)
        if room == "training" and room_of(module) == "converters"
    }
    assert used
    parts = {".".join(module.split(".")[:2]) for module in used}
    assert parts == {"converters.rules", "converters.importers"}


def test_engines_know_each_other_only_through_their_table() -> None:
    engines = ROOT / "sgate_serve" / "engines"
    own = {
        "onnx": engines.glob("onnx/*.py"),
        "vllm": engines.glob("vllm/*.py"),
        "torch": engines.glob("torch*.py"),
    }
    for name, files in own.items():
        for file in sorted(files):
            others = [f"sgate_serve.engines.{other}" for other in own if other != name]
            found = [m for m in own_imports(file) if m.startswith(tuple(others))]
            assert found == [], file


def test_importing_the_package_is_light() -> None:
    source = (ROOT / "sgate_serve" / "__init__.py").read_text(encoding="utf-8")
    assert list(imported(ROOT / "sgate_serve" / "__init__.py")) == [], source


def test_version_is_the_newest_changelog_entry() -> None:
    from sgate_serve import __version__

    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    versions = [line for line in lines if line.startswith("## [") and "[Unreleased]" not in line]
    newest = versions[0]
    assert newest.startswith(f"## [{__version__}]")
