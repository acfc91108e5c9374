"""Mutated configs with transformers as the judge: both read them alike, or we refuse by name."""

import random
from pathlib import Path

import numpy as np
import pytest

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import CheckpointError, EngineError
from sgate_serve.models.config_check import check_reading
from tests.families.config_judge import TOKENS, Config, OurReading, config_of, theirs
from tests.fuzz.config_mutations import mutated

NUM_SEEDS = 40
# Of a model that a test can build.
MAX_WEIGHTS, MAX_LAYERS = 10**6, 4


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> OurReading:
    return OurReading(tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mutated_config_is_read_as_by_transformers_or_refused_by_name(
    family: str, tmp_path: Path, ours: OurReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    verdicts = [judge(family, seed, tmp_path, ours) for seed in range(NUM_SEEDS)]
    assert min(verdicts.count("alike"), verdicts.count("refused")) > NUM_SEEDS / 10


def judge(family: str, seed: int, folder: Path, ours: OurReading) -> str:
    config = mutated(config_of(family), family, random.Random(f"{family} {seed}"))
    if config is None:
        return "unusable"
    try:
        spec = ModelSpec.from_config(config, "a/config.json")
    except CheckpointError as error:
        message = str(error)
        assert message.startswith("a/config.json: ") and "\n" not in message, seed
        assert len(message) < 400, seed
        return "refused"
    if not fits(spec):
        return "too large"
    # Raises where transformers refuses what we accept.
    wanted = theirs(config, spec.task, folder)
    check_reading(folder)
    try:
        found = ours(config)
    except EngineError as error:
        assert "use --engine torch" in str(error), seed
        return "alike"
    check_alike(found, wanted, config)
    return "alike"


def fits(spec: ModelSpec) -> bool:
    if spec.num_parameters > MAX_WEIGHTS or len(spec.layers) > MAX_LAYERS:
        return False
    # transformers saves experts of one unit without that axis, and cannot load them.
    if any(1 in layer.experts for layer in spec.layers):
        return False
    return spec.vocab_size > TOKENS.max() and spec.max_positions >= len(TOKENS)


def check_alike(
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    wanted: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    config: Config,
) -> None:
    assert found.shape == wanted.shape, config
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * scale, rtol=0, err_msg=str(config))
