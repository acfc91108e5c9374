"""What vLLM's scheduler and sampler do with a pruned model: caching, chunks, grammars, logprobs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.loaders.torch_model import TorchModel
from tests.small_llama import UNEVEN, dense_llama, random_tokens, save_pruned
from tests.text_model import EOS, byte_tokenizer, special_id, write_tokenizer

pytestmark = pytest.mark.vllm

# Blocks of the cache hold 128 tokens: the first is shared, the last is not full.
LENGTH = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "model"
    tokenizer = byte_tokenizer()
    model = dense_llama(
        num_hidden_layers=5,
        head_dim=12,
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_id=special_id(tokenizer, EOS),
    )
    save_pruned(model, UNEVEN, folder)
    write_tokenizer(folder, eos_token=EOS, tokenizer_class="PreTrainedTokenizerFast")
    return folder


def open_llm(folder: Path, **settings: Any) -> Any:
    import vllm

    from sgate_serve.engines.vllm.start import UNBOUND, environment

    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", **UNBOUND):
        return vllm.LLM(
            str(folder),
            dtype="float32",
            enforce_eager=True,
            kv_cache_memory_bytes=2**26,
            max_num_seqs=4,
            logprobs_mode="raw_logprobs",
            **settings,
        )


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[Any]:
    llm = open_llm(folder)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def generate(llm: Any, tokens: list[int], **params: Any) -> Any:
    import vllm

    settings = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | params
    prompt = {"prompt_token_ids": tokens}
    (answer,) = llm.generate([prompt], vllm.SamplingParams(**settings), use_tqdm=False)
    return answer


def prompt(seed: int) -> list[int]:
    tokens: list[int] = random_tokens(LENGTH, seed, vocab_size=300).tolist()
    return tokens


def test_a_cached_prefix_gives_the_same_tokens(llm: Any) -> None:
    first, again = (generate(llm, prompt(0)) for _ in range(2))
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 128)
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [({"choice": ["the cat", "the dog"]}, "the (cat|dog)"), ({"regex": "[0-9]{3}"}, "[0-9]{3}")],
    ids=["choice", "regex"],
)
def test_a_grammar_is_obeyed(llm: Any, grammar: dict[str, Any], pattern: str) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    tokens = byte_tokenizer().encode("a gate that is closed lets nothing through").ids
    asked = StructuredOutputsParams(**grammar)
    answer = generate(llm, tokens, max_tokens=20, ignore_eos=False, structured_outputs=asked)
    assert re.fullmatch(pattern, answer.outputs[0].text)
    free = generate(llm, tokens, max_tokens=20, ignore_eos=False)
    assert not re.fullmatch(pattern, free.outputs[0].text)


def test_logprobs_are_the_references(llm: Any, folder: Path) -> None:
    answer = generate(llm, prompt(2), logprobs=5)
    completion = answer.outputs[0]
    tokens = np.array([*prompt(2), *completion.token_ids])
    logits = TorchModel.converted(folder).logits(tokens)[LENGTH - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, found in zip(expected, completion.logprobs, strict=True):
        assert len(found) == 5
        for token, entry in found.items():
            assert entry.logprob == pytest.approx(row[token], abs=1e-4)


def test_a_seed_repeats_its_tokens(llm: Any) -> None:
    first, again, other = (
        generate(llm, prompt(3), temperature=1.5, max_tokens=20, seed=seed).outputs[0].token_ids
        for seed in (7, 7, 8)
    )
    assert first == again != other


def test_chunks_of_a_prompt_give_the_same_tokens(llm: Any, folder: Path) -> None:
    """Last here: a second engine takes over the groups of processes of the first."""
    expected = generate(llm, prompt(4)).outputs[0].token_ids
    chunked = open_llm(folder, max_num_batched_tokens=16)
    try:
        assert generate(chunked, prompt(4)).outputs[0].token_ids == expected
    finally:
        chunked.llm_engine.engine_core.shutdown()
