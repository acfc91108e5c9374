"""Thousands of malformed files: each is either read or refused with a typed error."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from converters.convert import make_plan, open_masked
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import SgateError
from sgate_serve.json_fields import read_json
from sgate_serve.plan import PLAN_FILE
from sgate_serve.plan.figures import removed
from sgate_serve.plan.json_form import read_plan
from sgate_serve.reports.inspection import Inspection
from tests.fuzz.model_folders import CONFIG, FOREIGN, Folders, write_folders
from tests.fuzz.mutations import (
    Mutator,
    mutate_bytes,
    mutate_header,
    mutate_header_bytes,
    mutate_json,
    mutate_values,
)

NUM_SEEDS = 200
JSON_FILES = (
    "base/config.json",
    "pruned/config.json",
    "pruned/sgate_plan.json",
    "pruned/verification.json",
    "sized/sgate_sizes.json",
    "encoder/config.json",
    "lowered/config.json",
    "lowered/sgate_plan.json",
    "int8/config.json",
    "puzzle/config.json",
    "whole/config.json",
    "shards/model.safetensors.index.json",
    *(f"{layout}/config.json" for layout in FOREIGN),
)
SAFETENSORS_FILES = (
    "base/model.safetensors",
    "gates/gates.safetensors",
    "gates/deltas.safetensors",
    "ordered/order.safetensors",
    "stock/model.safetensors",
    "lowered/model.safetensors",
    "int8/model.safetensors",
    "puzzle/model.safetensors",
    "whole/model.safetensors",
)
BASES = {"pruned": "base", "sized": "base", "int8": "base", "lowered": "encoder"}
CASES: tuple[tuple[str, Mutator], ...] = (
    *((file, mutator) for file in JSON_FILES for mutator in (mutate_json, mutate_bytes)),
    *(
        (file, mutator)
        for file in SAFETENSORS_FILES
        for mutator in (mutate_header, mutate_header_bytes)
    ),
    ("gates/gates.safetensors", mutate_values),
    ("ordered/order.safetensors", mutate_values),
    ("int8/model.safetensors", mutate_values),
)


@dataclass(frozen=True)
class Tally:
    """The number of refused mutations, and the seeds that raised anything else."""

    refused: int
    escaped: list[str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
    ("file", "mutator"), CASES, ids=[f"{file}-{mutator.__name__}" for file, mutator in CASES]
)
def test_a_mutated_file_is_read_or_refused(folders: Folders, file: str, mutator: Mutator) -> None:
    path = folders.root / file
    content = path.read_bytes()
    try:
        tally = run_seeds(folders, path, mutator, content)
    finally:
        path.write_bytes(content)
    assert not tally.escaped, "\n".join(tally.escaped)
    assert tally.refused > 0
    use(folders, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mutated_config_of_each_family_is_read_or_refused(family: str, tmp_path: Path) -> None:
    windows = {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    content = json.dumps(CONFIG | {"model_type": family} | windows).encode()
    path, refused = tmp_path / "config.json", 0
    for seed in range(NUM_SEEDS):
        path.write_bytes(mutate_json(content, random.Random(seed)))
        try:
            ModelSpec.from_config(read_json(path), str(path)).tensor_shapes()
        except SgateError as error:
            refused += 1
            assert str(path) in str(error), seed
    assert refused > NUM_SEEDS / 4


def run_seeds(folders: Folders, path: Path, mutator: Mutator, content: bytes) -> Tally:
    refused, escaped = 0, []
    for seed in range(NUM_SEEDS):
        path.write_bytes(mutator(content, random.Random(f"{path.name} {seed}")))
        try:
            use(folders, path)
        except SgateError as error:
            refused += 1
            message = str(error)
            if str(folders.root) not in message or "\n" in message or len(message) > 600:
                escaped.append(f"seed {seed}: names no file in one line: {message!r:.300}")
        except Exception as error:
            escaped.append(f"seed {seed}: {error!r:.300}")
    return Tally(refused, escaped)


def use(folders: Folders, path: Path) -> None:
    """Do everything that the commands do with the folder of `path` before computing."""
    if path.parent in (folders.gates, folders.ordered):
        masked = open_masked(folders.base, path.parent)
    else:
        inspection = Inspection.of(path.parent)
        json.dumps(inspection.to_json())
        assert all(isinstance(line, str) for line in inspection.lines())
        check_plan(path.parent / PLAN_FILE, folders)
        # An int8 folder cannot be a base.
        base = folders.base if inspection.folder.is_int8 else path.parent
        masked = open_masked(base, None)
    plan = make_plan(masked)
    assert 0 <= removed(plan, masked.spec) <= 1


def check_plan(path: Path, folders: Folders) -> None:
    if path.exists():
        base = folders.root / BASES[path.parent.name]
        config = json.loads((base / "config.json").read_bytes())
        read_plan(path).check(ModelSpec.from_config(config, str(path)))
