"""The ONNX graphs of different families, with idle rows and in chunks."""

import numpy as np
import pytest

from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.runner import all_logits
from tests.engines.drive import decode, prefill, prompt
from tests.engines.uneven_model import FAMILIES, UnevenModel, write_family


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> UnevenModel:
    return write_family(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_beside_idle_and_empty_rows_are_those_of_the_reference(
    model: UnevenModel,
) -> None:
    runner = load_runner(model.folders["onnx"], SlotOptions(slots=5, max_model_len=64, threads=1))
    prefill(runner, 1, list(prompt(64, 1)))
    held = {0: prompt(9, 2), 2: prompt(3, 3), 4: prompt(30, 4)}
    for slot, tokens in held.items():
        prefill(runner, slot, list(tokens[:-1]))
    found = decode(runner, list(held), [tokens[-1] for tokens in held.values()])
    for row, tokens in zip(found, held.values(), strict=True):
        expected = model.logits(np.array(tokens))[-1]
        np.testing.assert_allclose(row, expected, atol=1e-4 * np.abs(expected).max())


def test_logits_in_chunks_are_those_of_one_call(model: UnevenModel) -> None:
    runner = load_runner(model.folders["onnx"], SlotOptions(slots=1, max_model_len=64, threads=1))
    tokens = list(prompt(23, 5))
    expected = all_logits(runner, np.array(tokens))
    for start, stop in ((0, 4), (4, 5), (5, 17), (17, 23)):
        found = prefill(runner, 0, tokens[start:stop])
        np.testing.assert_allclose(found, expected[stop - 1], atol=1e-4 * np.abs(expected).max())
