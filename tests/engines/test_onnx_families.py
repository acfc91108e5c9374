"""Continuous batching on the ONNX engine of what sets families apart: norms of heads, windows,
soft caps, partial rotation, position tables."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from converters.convert import open_masked
from sgate_serve.engines.base import Request
from sgate_serve.engines.onnx import OnnxEngine, load_runner
from sgate_serve.engines.options import SlotOptions
from sgate_serve.engines.runner import all_logits
from sgate_serve.verify.reference import TorchModel
from tests.engines.drive import Answer, decode, greedy, prefill, prompt, run
from tests.engines.uneven_model import SIZES
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO, Variant

# Prompts below, at and above a chunk of 5 and a window of 5; more requests than the 3 slots.
LENGTHS = (1, 4, 5, 6, 11, 17, 3, 20)
COUNTS = (9, 3, 1, 12, 5, 8, 7, 4)
VARIANTS = [
    ZOO["qwen3"][1],
    ZOO["gemma3_text"][0],
    ZOO["gemma2"][0],
    ZOO["phi3"][0],
    ZOO["gpt2"][0],
]


@dataclass(frozen=True)
class Served:
    """The graph of a pruned model, and the masked dense model that it must answer like."""

    graph: Path
    oracle: TorchModel

    def greedy(self, tokens: tuple[int, ...], count: int) -> list[int]:
        """Return the oracle's greedy tokens, computed without any cache."""
        sequence = list(tokens)
        for _ in range(count):
            sequence.append(int(self.oracle.logits(np.array(sequence))[-1].argmax()))
        return sequence[len(tokens) :]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    variant: Variant = request.param
    root = tmp_path_factory.mktemp(str(variant))
    at = converted(variant, root, skip=1, index_price=0, to=("hf", "onnx"))
    oracle = TorchModel.masked_dense(open_masked(at["base"], at["gates"]))
    return Served(at["out"] / "onnx", oracle)


def requests() -> list[Request]:
    return [
        Request(f"r{seed}", prompt(length, seed), greedy(count))
        for seed, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True))
    ]


@pytest.mark.parametrize("every", [0, 2])
def test_requests_in_a_batch_get_the_tokens_of_the_reference_and_of_solo_runs(
    served: Served, every: int
) -> None:
    engine = OnnxEngine.load(served.graph, SIZES)
    together = run(engine, requests(), every)
    for request in requests():
        expected = served.greedy(request.prompt, request.sampling.max_tokens)
        assert together[request.request_id] == Answer(expected, "length")
        assert run(engine, [request]) == {request.request_id: together[request.request_id]}


def test_logits_beside_idle_and_empty_rows_are_those_of_the_reference(
    served: Served,
) -> None:
    runner = load_runner(served.graph, SlotOptions(slots=5, max_model_len=64, threads=1))
    prefill(runner, 1, list(prompt(64, 1)))
    held = {0: prompt(9, 2), 2: prompt(3, 3), 4: prompt(30, 4)}
    for slot, tokens in held.items():
        prefill(runner, slot, list(tokens[:-1]))
    found = decode(runner, list(held), [tokens[-1] for tokens in held.values()])
    for row, tokens in zip(found, held.values(), strict=True):
        expected = served.oracle.logits(np.array(tokens))[-1]
        np.testing.assert_allclose(row, expected, atol=1e-4 * np.abs(expected).max())


def test_logits_in_chunks_are_those_of_one_call(served: Served) -> None:
    runner = load_runner(served.graph, SlotOptions(slots=1, max_model_len=64, threads=1))
    tokens = list(prompt(23, 5))
    expected = all_logits(runner, np.array(tokens))
    for start, stop in ((0, 4), (4, 5), (5, 17), (17, 23)):
        found = prefill(runner, 0, tokens[start:stop])
        np.testing.assert_allclose(found, expected[stop - 1], atol=1e-4 * np.abs(expected).max())
