"""The benchmarks of precisions: quantizers round correctly, and every part runs."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from benchmarks import huge_pages, int4_or_int8, int8
from benchmarks.precision import BLOCKS, PrecisionOptions, run, write_rounded
from benchmarks.quantizers import QUANTIZERS
from sgate_serve.checkpoint.reader import Checkpoint
from tests.small_llama import dense_llama, save


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return save(dense_llama(tie_word_embeddings=True), tmp_path / "model")


def write_text(model: Checkpoint) -> Path:
    words = {f"w{index}": index for index in range(97)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(model.folder / "tokenizer.json"))
    text = model.folder.parent / "text.jsonl"
    text.write_text('{"text": "w5"}\n' * 64)
    return text


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_quantizer_keeps_zeros_and_uses_16_values_per_block(name: str, block: int) -> None:
    weight = np.random.default_rng(0).normal(0, 0.1, (7, 130)).astype(np.float32)
    weight[3] = 0
    rounded = QUANTIZERS[name](weight, block)
    assert rounded.dtype == np.float32 and not rounded[3].any()
    assert all(len(np.unique(row[:block])) <= 16 for row in rounded)
    assert np.square(rounded - weight).sum() < 0.03 * np.square(weight).sum()


def test_only_linears_inside_the_blocks_are_rounded(model: Checkpoint, tmp_path: Path) -> None:
    rounded = write_rounded(model, tmp_path / "rounded", QUANTIZERS["whole_range"], 32)
    inside = {f"{module}.weight" for module in model.spec.module_names()}
    for name in model.spec.tensor_shapes():
        is_same = bool((rounded.read(name) == model.read(name)).all())
        assert is_same == (name not in inside)


def test_record_of_both_parts(model: Checkpoint) -> None:
    text = write_text(model)
    sizes = PrecisionOptions(blocks=2, seq_len=16, rounds=1, layers=1, vocab_size=512)
    record = run(replace(sizes, model=str(model.folder), text=str(text)))
    found = record["perplexity"]
    assert found["num_tokens"] == 30
    assert set(found["graphs"]) == {"fp32", "fp16", "int8", "int4"}
    assert all(1 < value < math.inf for value in found["graphs"].values())
    assert found["graphs"]["fp16"] == pytest.approx(found["graphs"]["fp32"], rel=0.05)
    assert set(found["weights_alone"]) == set(QUANTIZERS)
    assert set(record["speed"]["speedups"]) == {"int8", "int4"}
    # Bytes of the random model's weights, which are fp32 in the graph of the comparison.
    assert record["speed"]["speedups"]["int4"]["prefill"]["ideal"] == 1
    assert record["speed"]["speedups"]["int4"]["decode_batch_1"]["ideal"] > 4


def test_record_of_the_forms_of_int8_products(model: Checkpoint) -> None:
    sizes = int8.Int8Options(blocks=2, seq_len=16, rounds=1, layers=1, vocab_size=512)
    named = replace(sizes, model=str(model.folder), text=str(write_text(model)))
    record = int8.run(named)
    forms = (int8.FP32, int8.BLOCKS, int8.ROWS, int8.RESCALED)
    assert tuple(record["perplexity"]) == forms
    found = [record["perplexity"][form]["text"] for form in forms]
    assert len(set(found)) == len(forms) and found == pytest.approx([found[0]] * 4, rel=0.2)
    assert set(record["speed"]["speedups"]) == {int8.ROWS, int8.RESCALED}


def test_record_of_int4_beside_both_forms_of_int8() -> None:
    options = int4_or_int8.ChoiceOptions(rounds=1, layers=1, vocab_size=512, prefill_tokens=16)
    record = int4_or_int8.run(options)
    assert set(record["speed"]["speedups"]) == {int8.BLOCKS, int8.RESCALED}
    sizes = record["bytes"]
    assert sizes["int4"] < 0.8 * sizes[int8.RESCALED] < 0.8 * sizes[int8.BLOCKS]


def test_record_of_huge_pages() -> None:
    if not huge_pages.SETTING.exists():
        pytest.skip("this system has no huge pages")
    options = huge_pages.HugePagesOptions(precisions="int8", rounds=2, layers=1, vocab_size=512)
    (result,) = huge_pages.run(options)["results"].values()
    assert all(len(own) == 2 for own in result["seconds"]["prefill"].values())
    assert all(0.01 < of["median"] < 100 for of in result["speedups"].values())
