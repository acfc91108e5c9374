"""Loading a draft model beside the model that it drafts for; which ones are refused."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.commands.serve import generator_of, with_draft
from sgate_serve.engines.contract import Request
from sgate_serve.engines.engine_options import OnnxOptions, SlotOptions
from sgate_serve.engines.onnx.runner import OnnxRunner
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.errors import EngineError, SgateError
from sgate_serve.loaders.serving import load_slot_engine
from tests.engines.drive import greedy, prompt, run
from tests.families.zoo import ZOO, build
from tests.small_llama import UNEVEN, dense_llama, reference_greedy, save, save_pruned
from tests.text_model import write_tokenizer

SIZES = OnnxOptions(slots=2, max_model_len=40, threads=1, prefill_chunk=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    checkpoint = save(dense_llama(num_hidden_layers=5), tmp_path_factory.mktemp("dense"))
    write_tokenizer(checkpoint.folder)
    return checkpoint


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("child") / "model"
    checkpoint = save_pruned(dense_llama(num_hidden_layers=5), UNEVEN, folder)
    write_tokenizer(folder)
    return checkpoint


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_draft_model_has_the_sizes_of_the_model_that_it_drafts_for(
    model: Checkpoint, child: Checkpoint, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = SIZES if name == "onnx" else SlotOptions(2, 40, 1, 8)
    with caplog.at_level(logging.INFO):
        engine = load_slot_engine(name, model, replace(sizes, draft=str(child.folder)))
    assert engine.drafter is not None
    own = engine.drafter.runner
    assert (own.num_slots, own.max_model_len) == (2, 40)
    assert engine.drafter.num_tokens == 3
    assert f"draft {child.folder}: 3 tokens at a time" in caplog.text
    # The draft model says what its memory is.
    assert name == "torch" or caplog.text.count("KV cache of 80 tokens in up to") == 2
    (answer,) = run(engine, [Request("a", prompt(9), greedy(20))]).values()
    assert answer.tokens == reference_greedy(dense_llama(num_hidden_layers=5), prompt(9), 20)
    assert engine.stats().drafts > 0
    engine.close()


def test_precision_and_count_of_drafts_are_chosen(model: Checkpoint, child: Checkpoint) -> None:
    given = replace(SIZES, draft=str(child.folder), draft_tokens=7)
    precisions = []
    for own in ({"draft_precision": "int8"}, {"precision": "int8"}, {}):
        engine = load_slot_engine("onnx", model, replace(given, **own))  # type: ignore[arg-type]
        assert engine.drafter is not None and engine.drafter.num_tokens == 7
        precisions.append((engine.precision.name, engine.drafter.runner.precision.name))
        assert isinstance(engine.drafter.runner, OnnxRunner)
    assert precisions == [("fp32", "int8"), ("int8", "int8"), ("fp32", "fp32")]
    with pytest.raises(EngineError, match="a step of 8 tokens cannot check 8 drafted ones and the"):
        load_slot_engine("onnx", model, replace(given, draft_tokens=8))


def test_a_draft_model_needs_the_same_tokens(
    model: Checkpoint, child: Checkpoint, tmp_path: Path
) -> None:
    other = save(dense_llama(vocab_size=96), tmp_path / "other")
    write_tokenizer(other.folder)
    without = save(dense_llama(), tmp_path / "without")
    renamed = save(dense_llama(), tmp_path / "renamed")
    write_tokenizer(renamed.folder)
    file = renamed.folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] |= {"a": tokenizer["model"]["vocab"]["b"]}
    file.write_text(json.dumps(tokenizer))
    short = save(dense_llama(max_position_embeddings=32), tmp_path / "short")
    write_tokenizer(short.folder)
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "bert")
    with pytest.raises(SgateError, match=r"--draft: .*bert does not generate text; leave it out"):
        with_draft([], str(child.folder), Checkpoint.open(tmp_path / "bert"))
    for folder, message in (
        (other.folder, "its vocabulary has 96 tokens, that of .* 97; give a model that was pruned"),
        (without.folder, "its tokenizer.json is not that of .*; give a model that was pruned"),
        (renamed.folder, "its tokenizer.json is not that of"),
        (short.folder, "it holds 32 tokens, and the model that it drafts for 40; give --max-model"),
        (tmp_path / "bert", "it does not generate text; give a causal LM"),
    ):
        with pytest.raises(EngineError, match=f"--draft {folder}: {message}"):
            load_slot_engine("onnx", model, replace(SIZES, draft=str(folder)))
    on_gpu = replace(SIZES, draft=str(child.folder), device="cuda")
    with pytest.raises(EngineError, match="--draft needs --device cpu, found cuda"):
        load_slot_engine("onnx", model, on_gpu)


def test_the_same_tokens_may_be_written_otherwise(model: Checkpoint, tmp_path: Path) -> None:
    again = save(dense_llama(), tmp_path / "again")
    write_tokenizer(again.folder)
    file = again.folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1, sort_keys=True))
    engine = load_slot_engine("torch", model, SlotOptions(2, 40, 1, 8, draft=str(again.folder)))
    assert engine.drafter is not None
    engine.close()


def test_only_the_first_model_of_a_server_gets_drafts(model: Checkpoint, child: Checkpoint) -> None:
    sizes = ["--slots", "2", "--max-model-len", "40", "--prefill-chunk", "8"]
    words = with_draft([*sizes, "--draft-tokens", "3"], str(child.folder), model)
    for drafts in (True, False):
        engine = generator_of("torch", model, words, drafts=drafts)().engine
        assert isinstance(engine, SlotEngine)
        assert (engine.drafter is not None) == drafts
        engine.close()


def test_options_about_a_draft_need_one() -> None:
    for own in ({"draft_tokens": 3}, {"draft_precision": "int8"}):
        (name,) = own
        with pytest.raises(EngineError, match=f"--{name.replace('_', '-')} has no effect without"):
            OnnxOptions(**own)
    given = OnnxOptions(slots=3, draft="child", draft_tokens=3, draft_precision="int8")
    assert given.without_draft() == OnnxOptions(slots=3)
