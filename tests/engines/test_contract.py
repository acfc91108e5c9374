"""The contract of an engine: the same cases on every engine."""

from dataclasses import replace

import numpy as np
import pytest

from sgate_serve.engines.contract import Request, SamplingParams, TokenEvent
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.model_protocols import LoadedEngine
from sgate_serve.engines.table import VLLM
from sgate_serve.errors import RequestError
from tests.engines.drive import Answer, greedy, load_of, prompt, run, step
from tests.engines.ladder import ladder
from tests.engines.uneven_model import SIZES, Case, LoadEngine, UnevenModel
from tests.small_llama import random_tokens


def ragged_requests() -> list[Request]:
    """Return more requests than slots, with prompts below, at and above a chunk."""
    lengths = (1, 4, 5, 6, 11, 17, 3, 20)
    counts = (9, 3, 1, 12, 5, 8, 7, 4)
    return [
        Request(f"r{seed}", prompt(length, seed), greedy(count))
        for seed, (length, count) in enumerate(zip(lengths, counts, strict=True))
    ]


def test_teacher_forced_logits_are_the_masked_dense_models(
    engine: LoadedEngine, served: UnevenModel, case: Case
) -> None:
    tokens = random_tokens(40)
    expected = served.logits(tokens)
    error = np.abs(engine.logits(tokens) - expected).max()
    assert error < case.error * np.abs(expected).max()


@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_staggered_requests_get_the_reference_tokens(
    engine: LoadedEngine, served: UnevenModel, every: int
) -> None:
    answers = run(engine, ragged_requests(), every)
    for request in ragged_requests():
        expected = served.greedy(request.prompt, request.sampling.max_tokens)
        assert answers[request.request_id] == Answer(expected, "length")


def test_each_request_gets_the_tokens_of_its_solo_run(engine: LoadedEngine) -> None:
    together = run(engine, ragged_requests(), every=2)
    for request in ragged_requests():
        assert run(engine, [request]) == {request.request_id: together[request.request_id]}


def test_requests_that_begin_alike_get_the_reference_tokens(
    engine: LoadedEngine, served: UnevenModel
) -> None:
    start, rng = prompt(14, seed=5), np.random.default_rng(0)
    turns = [start]
    for _ in range(2):
        turns.append((*turns[-1], *served.greedy(turns[-1], 3), *prompt(2, int(rng.integers(99)))))
    # Turns of a chat, the same prompt again and twice at once, shorter and longer ones that share
    # a part, and one that shares nothing.
    others = [start, start, start[:9], start[:1], (*start[:11], *prompt(6, 8)), prompt(7, 9)]
    for every in (0, 1, 4):
        requests = [
            Request(f"{every}.{index}", tokens, greedy(3 + index % 4))
            for index, tokens in enumerate([*turns, *others, *turns[::-1]])
        ]
        for request, answer in zip(requests, run(engine, requests, every).values(), strict=True):
            expected = served.greedy(request.prompt, request.sampling.max_tokens)
            assert answer == Answer(expected, "length")


def skip_without_drafts(engine: LoadedEngine, case: Case) -> None:
    message = None
    if case.engine == VLLM:
        message = "drafted_tokens is not supported by this engine"
    elif case.is_recurrent:
        message = "`prompt_lookup_num_tokens` needs .* a model without recurrent layers"
    if message is not None:
        with pytest.raises(RequestError, match=message):
            engine.add(Request("a", prompt(5), replace(greedy(4), drafted_tokens=2)))
        pytest.skip(message)


def test_a_grammar_is_followed_or_refused(engine: LoadedEngine, case: Case) -> None:
    grammar = replace(ladder((3,), (5, 7), (5,)), vocab_size=engine.vocab_size)
    request = Request("a", prompt(5), replace(greedy(8), grammar=grammar))
    if case.engine == VLLM:
        with pytest.raises(RequestError, match="grammar is not supported by this engine"):
            engine.add(request)
        return
    answer = run(engine, [request])["a"]
    assert answer in (Answer([3, 5, 5], "stop"), Answer([3, 7, 5], "stop"))


def test_looking_tokens_up_changes_none(
    engine: LoadedEngine, served: UnevenModel, case: Case
) -> None:
    skip_without_drafts(engine, case)
    # The model soon repeats itself, and the last prompts hold what it will say, or half of it.
    said = served.greedy(prompt(6, 1), 24)
    prompts = [prompt(6, 1), (*prompt(6, 1), *said[:20], *prompt(6, 1)), prompt(17, 2)]
    prompts.append((*prompt(6, 1), *said[:9], 3, 3, 3, *prompt(6, 1), *said[:3]))
    for every, drafted in ((0, 5), (1, 2), (3, 30)):
        for stop in ([], [said[5]]):
            requests = [
                Request(f"{index}", tokens, greedy(11, stop))
                for index, tokens in enumerate(prompts)
            ]
            expected = run(engine, requests, every)
            looking = [
                replace(request, sampling=replace(request.sampling, drafted_tokens=drafted))
                for request in requests
            ]
            assert run(engine, looking, every, looked_up=drafted) == expected
            for request, answer in zip(requests, expected.values(), strict=True):
                tokens = served.greedy(request.prompt, 11)
                if answer.finish_reason == "length":
                    assert answer.tokens == tokens
                else:
                    assert answer.tokens == tokens[: tokens.index(said[5])]


def test_sampled_tokens_are_those_without_looking_up(engine: LoadedEngine, case: Case) -> None:
    skip_without_drafts(engine, case)
    repeated = (*prompt(8), *prompt(8), *prompt(5))
    sampling = SamplingParams(
        max_tokens=16, temperature=0.3, seed=7, repetition_penalty=1.1, logprobs=1
    )
    alone = [sampling, replace(sampling, drafted_tokens=6)]
    found = []
    for number, own in enumerate(alone):
        engine.add(Request(f"{number}", repeated, own))
        events: list[TokenEvent] = []
        while engine.has_work():
            events += engine.step()
        found.append([(event.token, event.logprobs and event.logprobs.token) for event in events])
    assert found[0] == found[1]


@pytest.mark.parametrize(("slots", "chunk"), [(1, 1), (2, 7), (2, 20), (2, 100)])
def test_chunk_size_does_not_change_tokens(
    load: LoadEngine, served: UnevenModel, slots: int, chunk: int
) -> None:
    engine = load(SlotOptions(slots=slots, max_model_len=48, threads=1, prefill_chunk=chunk))
    requests = [Request(str(length), prompt(length), greedy(4)) for length in (19, 20, 21)]
    for request_id, answer in run(engine, requests).items():
        assert answer.tokens == served.greedy(prompt(int(request_id)), 4)


def test_stop_token_ends_a_request_unseen(engine: LoadedEngine, served: UnevenModel) -> None:
    expected = served.greedy(prompt(6), 8)
    stop = expected[4]
    first = expected.index(stop)
    answers = run(engine, [Request("a", prompt(6), greedy(8, stop=[stop]))])
    assert answers["a"] == Answer(expected[:first], "stop")


def test_stop_token_may_come_first(engine: LoadedEngine, served: UnevenModel) -> None:
    (first,) = served.greedy(prompt(3), 1)
    answers = run(engine, [Request("a", prompt(3), greedy(8, stop=[first]))])
    assert answers["a"] == Answer([], "stop")
    assert not engine.has_work()


def test_generation_ends_at_the_model_length(engine: LoadedEngine, served: UnevenModel) -> None:
    answers = run(engine, [Request("a", prompt(40), greedy(100))])
    assert answers["a"] == Answer(served.greedy(prompt(40), 8), "length")


def test_longest_prompt_gets_one_token(engine: LoadedEngine, served: UnevenModel) -> None:
    answers = run(engine, [Request("a", prompt(47), greedy(100))])
    assert answers["a"] == Answer(served.greedy(prompt(47), 1), "length")


def test_abort_leaves_the_others_alone(engine: LoadedEngine) -> None:
    requests = ragged_requests()
    solo = {request.request_id: run(engine, [request])[request.request_id] for request in requests}
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:
        engine.add(request)
    for _ in range(4):
        step(engine, answers)
    engine.abort("r3")  # in prefill
    engine.abort("r7")  # waiting
    engine.abort("nobody")
    while engine.has_work():
        step(engine, answers)
    assert answers["r3"].finish_reason is None and answers["r7"] == Answer()
    for name in set(answers) - {"r3", "r7"}:
        assert answers[name] == solo[name]


def test_a_seed_repeats_its_tokens_in_any_batch(load: LoadEngine) -> None:
    # Whole prompts: vLLM 0.32 on CPU cannot rewind the generator of a prompt in several chunks.
    engine = load(replace(SIZES, prefill_chunk=48))
    sampling = SamplingParams(max_tokens=12, temperature=1.5, top_p=0.9, seed=7)
    request = Request("seeded", prompt(6), sampling)
    others = [
        Request(f"r{seed}", prompt(4 + seed, seed), SamplingParams(max_tokens=9, seed=seed))
        for seed in range(4)
    ]
    alone = run(engine, [request])["seeded"]
    assert run(engine, [*others[:2], request, *others[2:]], every=1)["seeded"] == alone
    other_seed = SamplingParams(max_tokens=12, temperature=1.5, top_p=0.9, seed=8)
    assert run(engine, [Request("b", prompt(6), other_seed)])["b"].tokens != alone.tokens


def test_without_a_seed_runs_differ(engine: LoadedEngine) -> None:
    sampling = SamplingParams(max_tokens=20, temperature=2.0)
    answers = run(engine, [Request(name, prompt(6), sampling) for name in ("a", "b")])
    assert answers["a"].tokens != answers["b"].tokens


def test_stats_count_requests_and_the_cache_that_they_use(engine: LoadedEngine) -> None:
    requests = [Request(f"r{seed}", prompt(6, seed), greedy(20)) for seed in range(5)]
    answers = {request.request_id: Answer() for request in requests}
    assert load_of(engine) == (0, 0, 0.0)
    for request in requests:
        engine.add(request)
    for _ in range(4):
        step(engine, answers)
    running = engine.stats()
    assert (running.num_running, running.num_waiting) == (3, 2)
    assert 0 < running.kv_cache_usage <= 1
    engine.abort("r0")
    engine.abort("r4")
    aborted = engine.stats()
    assert (aborted.num_running, aborted.num_waiting) == (2, 1)
    assert 0 < aborted.kv_cache_usage < running.kv_cache_usage
    while engine.has_work():
        step(engine, answers)
    assert load_of(engine) == (0, 0, 0.0)


def test_nothing_is_left_of_aborted_requests(engine: LoadedEngine) -> None:
    engine.add(Request("a", prompt(6), greedy(20)))
    engine.step()
    engine.abort("a")
    assert not engine.has_work()
    assert load_of(engine) == (0, 0, 0.0)


def test_sizes_are_those_asked_for(engine: LoadedEngine) -> None:
    assert (engine.max_model_len, engine.vocab_size) == (SIZES.max_model_len, 97)


@pytest.mark.parametrize(
    ("tokens", "sampling", "param"),
    [
        ((), greedy(), "prompt"),
        ((1, 97), greedy(), "prompt"),
        ((1,) * 48, greedy(), "prompt"),
        ((1,), SamplingParams(top_p=0.0), "top_p"),
    ],
)
def test_impossible_requests_are_refused_when_they_are_added(
    engine: LoadedEngine, tokens: tuple[int, ...], sampling: SamplingParams, param: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        engine.add(Request("a", tokens, sampling))
    assert refusal.value.param == param
    assert not engine.has_work()
