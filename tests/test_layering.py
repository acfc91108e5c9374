"""The import graph: who may import whom, read off the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# package → what of our own it may import beside itself, at any depth of a function.
CORE = {
    "sgate_serve.errors",
    "sgate_serve.family",
    "sgate_serve.families",
    "sgate_serve.fields",
    "sgate_serve.shapes",
    "sgate_serve.config_values",
    "sgate_serve.spec",
    "sgate_serve.quantization",
    "sgate_serve.precision",
    "sgate_serve.ragged",
    "sgate_serve.checkpoint",
    "sgate_serve.tensor_files",
    "sgate_serve.folder",
    "sgate_serve.plan",
    "sgate_serve.plan_json",
    "sgate_serve.placement",
    "sgate_serve.figures",
    "sgate_serve.targets",
    "sgate_serve.scales",
    "sgate_serve.pooling",
}


def below(*names: str) -> set[str]:
    return {f"sgate_serve.{name}" for name in names}


WORDS = below("errors", "family", "families", "fields", "shapes")
ENGINES = CORE | below("models", "onnx_format", "environment", "options")
ALLOWED = {
    "sgate_serve/errors.py": set(),
    "sgate_serve/family.py": set(),
    "sgate_serve/families.py": below("family"),
    "sgate_serve/fields.py": below("errors"),
    "sgate_serve/tensor_files.py": below("errors", "fields"),
    "sgate_serve/shapes.py": below("family"),
    "sgate_serve/config_fields.py": WORDS,
    "sgate_serve/config_values.py": WORDS,
    "sgate_serve/spec.py": WORDS | below("config_fields", "config_values"),
    "sgate_serve/ragged": WORDS | below("config_fields", "config_values"),
    "sgate_serve/quantization.py": WORDS | below("spec", "tensor_files"),
    "sgate_serve/checkpoint.py": WORDS | below("quantization", "ragged", "spec", "tensor_files"),
    "sgate_serve/folder.py": below("errors", "tensor_files"),
    "sgate_serve/plan.py": WORDS | below("spec"),
    "sgate_serve/plan_json.py": WORDS | below("plan"),
    "sgate_serve/placement.py": WORDS | below("spec", "plan"),
    "sgate_serve/targets.py": WORDS | below("spec", "plan"),
    "sgate_serve/scales.py": below("spec"),
    "sgate_serve/pooling.py": below("errors", "fields"),
    "sgate_serve/figures.py": WORDS | below("spec", "plan", "placement", "targets"),
    "sgate_serve/gates": CORE,
    "converters": CORE | below("companions", "gates", "onnx_format", "model_card"),
    "sgate_serve/models": CORE,
    "sgate_serve/engines": ENGINES,
    # Hands our server's options to vLLM's, which takes its place.
    "sgate_serve/engines/vllm/server.py": ENGINES | below("engines", "server.options"),
    "sgate_serve/server": {"sgate_serve.errors", "sgate_serve.engines.base"}
    | below("tokenization", "fields", "__version__", "options"),
    "sgate_serve/training": CORE
    | {"sgate_serve.gates", "sgate_serve.options", "converters.rules", "sgate_serve.models"}
    | below("companions", "environment", "hub_data", "labels", "records", "scores", "tokenization"),
}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "sgate_serve":
            yield from (f"sgate_serve.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_stay_within_the_graph(place: str) -> None:
    path = ROOT / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    # A file with an entry of its own is judged by that one alone.
    files = [file for file in files if file == path or str(file.relative_to(ROOT)) not in ALLOWED]
    assert files
    own = place.removesuffix(".py").replace("/", ".")
    allowed = ALLOWED[place] | {own}
    ours = ("sgate_serve", "converters")
    strays = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in imported(file)
        if module.split(".")[0] in ours and not any(is_within(module, a) for a in allowed)
    ]
    assert strays == []


def test_importing_the_package_is_light() -> None:
    source = (ROOT / "sgate_serve" / "__init__.py").read_text(encoding="utf-8")
    assert list(imported(ROOT / "sgate_serve" / "__init__.py")) == [], source


def test_version_is_the_newest_changelog_entry() -> None:
    from sgate_serve import __version__

    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    newest = next(line for line in lines if line.startswith("## ["))
    assert newest.startswith(f"## [{__version__}]")
