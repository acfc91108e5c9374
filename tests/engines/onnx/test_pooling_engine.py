"""The embedded pooling engine: values in any batch, the order of requests, rejections."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from converters.to_onnx import write_onnx
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import EngineStats, PooledOutput, PoolingRequest
from sgate_serve.engines.engine_options import PoolingOptions
from sgate_serve.engines.model_protocols import LoadedPoolingEngine
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.onnx.pooling_engine import (
    SORTED_BATCHES,
    OnnxPoolingEngine,
    PoolingSizes,
    choose_sizes,
    cut,
)
from sgate_serve.engines.onnx.pooling_runner import OnnxPoolingRunner
from sgate_serve.errors import EngineError, RequestError
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.names import META_PADDING_POSITION
from sgate_serve.text.pooling import Pooling
from tests.families.zoo import ON_ENGINES, ZOO, Variant, build
from tests.families.zoo_configs import VOCABULARY
from tests.small_llama import dense_llama, save

POOLING_MODELS = [variant for variant in ON_ENGINES if variant.task != "causal-lm"]
LENGTHS = (3, 17, 1, 8, 30)
ONE_THREAD = PoolingOptions(threads=1)

Ints = NDArray[np.int64]


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[Ints]:
    """Return random texts of ids above every family's padding id."""
    generator = np.random.default_rng(0)
    return [generator.integers(2, VOCABULARY, length) for length in lengths]


def model_of(variant: Variant, root: Path) -> Checkpoint:
    build(variant, seed=0).save_pretrained(root / "model")
    checkpoint = Checkpoint.open(root / "model")
    write_onnx(checkpoint, root / "onnx")
    return checkpoint


def encoder_of(
    variant: Variant,
    root: Path,
    options: PoolingOptions = ONE_THREAD,
    pooling: Pooling | None = None,
) -> OnnxPoolingEngine:
    model_of(variant, root)
    return OnnxPoolingEngine.load(root / "onnx", options, pooling)


def requests(prompts: list[Ints]) -> list[PoolingRequest]:
    return [PoolingRequest(str(i), tuple(prompt.tolist())) for i, prompt in enumerate(prompts)]


def drain(encoder: OnnxPoolingEngine) -> dict[str, PooledOutput]:
    answers: dict[str, PooledOutput] = {}
    while encoder.has_work():
        for output in encoder.step():
            assert output.request_id not in answers
            answers[output.request_id] = output
    return answers


@pytest.mark.parametrize("variant", POOLING_MODELS, ids=str)
def test_values_are_those_of_the_reference_in_ragged_batches(
    tmp_path: Path, variant: Variant
) -> None:
    model, prompts = model_of(variant, tmp_path), texts()
    # Users can write "<pad>": in RoBERTa it has a position of its own, which others do not count.
    prompts[1][[0, 6, 7, -1]] = prompts[2][0] = variant.config["pad_token_id"]
    runner = OnnxPoolingRunner.load(tmp_path / "onnx", 1)
    encoder = OnnxPoolingEngine(runner, PoolingSizes(64, 1000), Pooling())
    oracle = TorchModel.converted(model.folder)
    together = encoder.encode(prompts)
    for prompt, found in zip(prompts, together, strict=True):
        expected = oracle.logits(prompt)[: len(prompt)]
        rows = np.atleast_2d(found)
        np.testing.assert_allclose(rows, expected, atol=2e-4 * np.abs(expected).max())
        (alone,) = encoder.encode([prompt])
        np.testing.assert_allclose(alone, found, atol=1e-6 * np.abs(found).max())


def test_graph_without_a_position_for_padding_refuses_it_inside_a_text(tmp_path: Path) -> None:
    """Releases before the position of padding tokens was stored wrote such graphs."""
    model_of(ZOO["roberta"][1], tmp_path)
    graph = ir.load(tmp_path / "onnx" / "model.onnx")
    del graph.metadata_props[META_PADDING_POSITION]
    ir.save(graph, tmp_path / "onnx" / "model.onnx")
    encoder = OnnxPoolingEngine.load(tmp_path / "onnx", ONE_THREAD)
    for add in (encoder.add, lambda request: encoder.encode([np.array(request.prompt)])):
        with pytest.raises(
            RequestError, match=r"text holds the padding token, id 1,.* convert the"
        ):
            add(PoolingRequest("a", (0, 7, 1, 2)))
    encoder.add(PoolingRequest("b", (0, 7, 9, 2)))
    assert len(drain(encoder)) == 1


def test_token_types_are_read(tmp_path: Path) -> None:
    encoder, (prompt,) = encoder_of(ZOO["bert"][1], tmp_path), texts((9,))
    types = (0,) * 4 + (1,) * 5
    encoder.add(PoolingRequest("pair", tuple(prompt.tolist()), types))
    encoder.add(PoolingRequest("single", tuple(prompt.tolist())))
    found = drain(encoder)
    model = TorchModel.converted(tmp_path / "model").model
    with torch.inference_mode():
        ids = torch.from_numpy(prompt)[None]
        expected = model(ids, token_type_ids=torch.tensor([types])).logits[0].numpy()
    np.testing.assert_allclose(found["pair"].values, expected, atol=1e-5)
    assert np.abs(found["single"].values - expected).max() > 1e-3


def test_token_types_mean_nothing_to_a_family_without(tmp_path: Path) -> None:
    encoder, (prompt,) = encoder_of(ZOO["distilbert"][1], tmp_path), texts((5,))
    encoder.add(PoolingRequest("pair", tuple(prompt.tolist()), (0, 0, 1, 1, 1)))
    encoder.add(PoolingRequest("single", tuple(prompt.tolist())))
    found = drain(encoder)
    np.testing.assert_allclose(found["pair"].values, found["single"].values, atol=1e-6)


@pytest.mark.parametrize("ending", [(7, 0, 0), (0, 7, 0), (0, 0, 0)])
def test_decoder_classifies_by_the_last_token_that_is_no_padding(
    tmp_path: Path, ending: tuple[int, ...]
) -> None:
    encoder = encoder_of(ZOO["llama"][2], tmp_path)
    prompt = np.array(ending, np.int64)
    expected = TorchModel.converted(tmp_path / "model").logits(prompt)[0]
    np.testing.assert_allclose(encoder.encode([prompt])[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "reduced"),
    [
        ("mean", lambda states: states.mean(axis=0)),
        ("cls", lambda states: states[0]),
        ("max", lambda states: states.max(axis=0)),
    ],
)
def test_poolings_of_states(tmp_path: Path, mode: str, reduced: object) -> None:
    assert callable(reduced)
    encoder = encoder_of(ZOO["bert"][0], tmp_path, pooling=Pooling(mode))
    for request in requests(texts()):
        encoder.add(request)
    answers = drain(encoder)
    oracle = TorchModel.converted(tmp_path / "model")
    for index, prompt in enumerate(texts()):
        expected = reduced(oracle.logits(prompt)[: len(prompt)])
        np.testing.assert_allclose(answers[str(index)].values, expected, atol=1e-5)


def test_oldest_requests_are_read_first_and_sorted_by_length(tmp_path: Path) -> None:
    options = replace(ONE_THREAD, batch_tokens=20)
    encoder = encoder_of(ZOO["bert"][1], tmp_path, options)
    lengths = (18, 2, 17, 3, 16, 4, 19, 9)
    for request in requests(texts(lengths)):
        encoder.add(request)
    assert encoder.stats() == EngineStats(0, 8, 0.0)
    steps = []
    while encoder.has_work():
        steps.append([output.request_id for output in encoder.step()])
    # 79 of 80 tokens are sorted together; the last one waits for its own round.
    assert steps == [["0"], ["1", "3", "5"], ["2"], ["4"], ["6"], ["7"]]
    assert sum(lengths[:7]) <= SORTED_BATCHES * encoder.batch_tokens < sum(lengths)
    assert encoder.step() == []


def test_no_request_waits_for_later_rounds(tmp_path: Path) -> None:
    options = replace(ONE_THREAD, batch_tokens=20)
    encoder = encoder_of(ZOO["bert"][1], tmp_path, options)
    first = requests(texts((10,) * 8))
    for request in first:
        encoder.add(request)
    seen: list[str] = []
    for number in range(4):
        seen += [output.request_id for output in encoder.step()]
        # Shorter ones keep arriving, but those of the current round come first.
        encoder.add(PoolingRequest(f"late {number}", (5,)))
    assert seen == [request.request_id for request in first]


def test_batches_hold_their_tokens_or_one_long_text() -> None:
    made = requests(texts((5, 5, 5, 30)))
    assert [len(batch) for batch in cut(made, 10)] == [2, 1, 1]
    assert cut([], 10) == []


def test_abort_drops_waiting_and_planned_requests(tmp_path: Path) -> None:
    options = replace(ONE_THREAD, batch_tokens=20)
    encoder = encoder_of(ZOO["bert"][1], tmp_path, options)
    for request in requests(texts((20,) * 6)):
        encoder.add(request)
    encoder.abort("0")
    assert [output.request_id for output in encoder.step()] == ["1"]
    for name in ("2", "5", "unknown"):
        encoder.abort(name)
    assert set(drain(encoder)) == {"3", "4"}
    assert not encoder.has_work()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (PoolingRequest("r", ()), "the prompt has no tokens; give at least one"),
        (PoolingRequest("r", (1, 97)), "token 97 at index 1 is outside the vocabulary of 97"),
        (PoolingRequest("r", (1,) * 65), "has 65 tokens; this model reads at most 64"),
        (PoolingRequest("r", (1, 2), (0,)), "1 token_types for 2 tokens; give one for each"),
        (PoolingRequest("r", (1, 2), (0, 2)), "must be from 0 to 1, found 0 to 2"),
    ],
)
def test_requests_that_cannot_run_are_refused(
    tmp_path: Path, request_: PoolingRequest, message: str
) -> None:
    encoder = encoder_of(ZOO["bert"][1], tmp_path)
    with pytest.raises(RequestError, match=message):
        encoder.add(request_)
    assert not encoder.has_work()


def test_sizes_are_the_users_or_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model_of(ZOO["bert"][0], tmp_path)
    info = OnnxPoolingRunner.load(tmp_path / "onnx", 1).info
    assert choose_sizes(PoolingOptions(), info, Pooling(max_tokens=20)).max_model_len == 20
    assert choose_sizes(PoolingOptions(), info, Pooling(max_tokens=99)).max_model_len == 64
    assert choose_sizes(PoolingOptions(30), info, Pooling(max_tokens=20)).max_model_len == 30
    with pytest.raises(EngineError, match="max_model_len 65 exceeds the graph's capacity of 64"):
        choose_sizes(PoolingOptions(65), info, Pooling())
    with caplog.at_level("INFO"):
        OnnxPoolingEngine.load(tmp_path / "onnx", PoolingOptions(threads=1, batch_tokens=70))
    assert "onnx engine: weights fp32, max_model_len=64 batch_tokens=70 threads=1" in caplog.text
    with pytest.raises(EngineError, match="option batch_tokens must be at least 1, found 0"):
        PoolingOptions(batch_tokens=0)


def test_graphs_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    write_onnx(save(dense_llama(), tmp_path / "llama"), tmp_path / "generates")
    with pytest.raises(
        EngineError, match=r"model.onnx generates text; it is not a graph to classify"
    ):
        OnnxPoolingRunner.load(tmp_path / "generates", 1)
    model_of(ZOO["bert"][1], tmp_path)
    with pytest.raises(
        EngineError, match=r"is a graph to classify with; it does not generate text"
    ):
        load_runner(tmp_path / "onnx")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("family", None, "sgate.family is missing"),
        ("logit_token", None, "sgate.logit_token is missing"),
        ("logit_token", "second", "sgate.logit_token is 'second', not one of first, last, every"),
        ("num_types", None, "sgate.num_types is missing"),
        ("padding_id", None, "sgate.padding_id is missing"),
        ("padding_id", "x", "sgate.padding_id is 'x', not an integer"),
        ("vocab_size", None, "sgate.vocab_size is missing"),
        ("vocab_size", "9999999", r"cannot run it \(.*Gather.*\)"),
        ("num_types", "9", r"cannot run it \(.*Gather.*\)"),
        ("padding_position", "-1", "padding_position is '-1', not a whole number of at least 0"),
        ("padding_position", "99999", r"cannot run it \(.*Gather.*\)"),
    ],
)
def test_damaged_metadata(tmp_path: Path, key: str, value: str | None, said: str) -> None:
    model_of(ZOO["roberta"][1], tmp_path)
    path = tmp_path / "onnx" / "model.onnx"
    graph = ir.load(path)
    graph.metadata_props.pop(f"sgate.{key}")
    graph.metadata_props.update({} if value is None else {f"sgate.{key}": value})
    ir.save(graph, path)
    with pytest.raises(EngineError, match=rf"model\.onnx: .*{said}; convert the model again$"):
        OnnxPoolingEngine.load(tmp_path / "onnx")


def test_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.onnx is missing; write it with `sgate convert"):
        OnnxPoolingEngine.load(tmp_path)


def test_close_frees_the_model(tmp_path: Path) -> None:
    encoder: LoadedPoolingEngine = encoder_of(ZOO["distilbert"][0], tmp_path)
    encoder.close()
    assert not hasattr(encoder, "runner")
