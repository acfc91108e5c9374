from typing import Any

import httpx
import pytest

from tests.server.hash_engine import HashEngine
from tests.server.live import (
    CODEC,
    MODEL,
    TOKENIZER,
    VOCAB_SIZE,
    events,
    serving_engine,
    speaking,
    token_ids,
)
from tests.text_model import special_id

TEXT = "the cat 🚀 座った sat on the mat"


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_completion_has_openais_shape_and_vllms_members(client: httpx.Client) -> None:
    answer = complete(client, model=MODEL, prompt="the cat")
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    assert answer["id"].startswith("cmpl-")
    [choice] = answer["choices"]
    vllms = {"stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs"}
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason", *vllms}
    assert {choice[name] for name in vllms} == {None}
    assert choice["finish_reason"] == "length"


def test_usage_counts_the_prompts_and_the_generated_tokens(client: httpx.Client) -> None:
    prompts = ["the cat", "a gate that is closed"]
    answer = complete(client, prompt=prompts, max_tokens=5, return_token_ids=True, ignore_eos=True)
    num_prompt = sum(len(TOKENIZER.encode(prompt).ids) for prompt in prompts)
    assert [len(choice["token_ids"]) for choice in answer["choices"]] == [5, 5]
    assert answer["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 10,
        "total_tokens": num_prompt + 10,
    }


def test_default_max_tokens_is_openais_sixteen(client: httpx.Client) -> None:
    answer = complete(client, prompt=[5, 6, 7], ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 16


def test_text_is_the_decoding_of_the_tokens(client: httpx.Client) -> None:
    answer = complete(client, prompt="the cat", max_tokens=40, return_token_ids=True)
    prompt = TOKENIZER.encode("the cat").ids
    [choice] = answer["choices"]
    assert CODEC.decode([*prompt, *choice["token_ids"]]) == "the cat" + choice["text"]


def test_text_and_its_token_ids_are_the_same_prompt(client: httpx.Client) -> None:
    as_text = complete(client, prompt="the cat")
    as_tokens = complete(client, prompt=TOKENIZER.encode("the cat").ids)
    assert as_text["choices"] == as_tokens["choices"]


@pytest.mark.parametrize("prompts", [["the cat", "a gate"], [[5, 6], [7, 8, 9], [5, 6]]])
def test_each_prompt_gets_its_own_choice_in_order(client: httpx.Client, prompts: list[Any]) -> None:
    together = complete(client, prompt=prompts)["choices"]
    alone = [complete(client, prompt=prompt)["choices"][0] for prompt in prompts]
    assert [choice["index"] for choice in together] == list(range(len(prompts)))
    assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]


def test_more_prompts_than_slots_are_all_answered(client: httpx.Client) -> None:
    prompts = [[index, index + 1] for index in range(20)]
    answer = complete(client, prompt=prompts, max_tokens=3, ignore_eos=True)
    assert len(answer["choices"]) == 20
    assert answer["usage"]["completion_tokens"] == 60


def test_echo_shows_the_prompt_first(client: httpx.Client) -> None:
    plain = complete(client, prompt="the cat")["choices"][0]["text"]
    assert complete(client, prompt="the cat", echo=True)["choices"][0]["text"] == "the cat" + plain
    ids = TOKENIZER.encode("the cat").ids
    assert complete(client, prompt=ids, echo=True)["choices"][0]["text"] == "the cat" + plain


def test_seed_and_temperature_reach_the_engine(client: httpx.Client) -> None:
    def text(**body: Any) -> str:
        return str(complete(client, prompt="the cat", **body)["choices"][0]["text"])

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text(seed=-1) not in (text(seed=1), text(seed=2))
    assert text(seed=1, temperature=0) == text(seed=2, temperature=0)


def test_model_may_be_named_by_the_last_part_of_its_path(client: httpx.Client) -> None:
    assert complete(client, model="tiny-model", prompt="a")["model"] == MODEL


def test_end_of_sequence_stops_and_is_neither_shown_nor_counted() -> None:
    with serving_engine(speaking(TEXT)) as client:
        answer = complete(client, prompt="a", max_tokens=100)
        [choice] = answer["choices"]
        assert (choice["text"], choice["finish_reason"]) == (TEXT, "stop")
        assert answer["usage"]["completion_tokens"] == len(token_ids(TEXT))
        beyond = complete(client, prompt="a", max_tokens=100, ignore_eos=True)
        assert beyond["usage"]["completion_tokens"] == 100
        assert beyond["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (" sat", "the cat 🚀 座った"),
        (["nowhere", "座"], "the cat 🚀 "),
        (["the"], ""),
        (["mat!"], TEXT),
        ([], TEXT),
        (None, TEXT),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_text_ends_before_the_stop_string(stop: Any, text: str, stream: bool) -> None:
    with serving_engine(speaking(TEXT)) as client:
        body = {"prompt": "a", "max_tokens": 100, "stop": stop, "stream": stream}
        response = client.post("/v1/completions", json=body)
        answers = events(response) if stream else [response.json()]
    shown = "".join(answer["choices"][0]["text"] for answer in answers)
    assert shown == text
    assert answers[-1]["choices"][0]["finish_reason"] == "stop"


def test_stop_string_counts_the_tokens_it_took_and_frees_the_slot() -> None:
    engine = HashEngine(VOCAB_SIZE, script=token_ids("the cat sat"), num_slots=1)
    with serving_engine(engine) as client:
        answer = complete(client, prompt="a", max_tokens=400, stop=" cat")
        assert answer["usage"]["completion_tokens"] == len(token_ids("the cat"))
        # The one slot is free again long before 400 tokens.
        assert complete(client, prompt="a", max_tokens=1)["choices"][0]["text"]
        assert engine.num_steps < 100


def test_special_token_as_stop_string_stops_by_its_id() -> None:
    engine = HashEngine(VOCAB_SIZE, script=[*token_ids("the cat"), special_id(TOKENIZER, "<s>")])
    with serving_engine(engine) as client:
        [choice] = complete(client, prompt="a", max_tokens=50, stop="<s>")["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("the cat", "stop")


def test_without_a_tokenizer_token_ids_work(client: httpx.Client) -> None:
    expected = complete(client, prompt=[5, 6, 7], return_token_ids=True)
    with serving_engine(HashEngine(VOCAB_SIZE), codec=None) as bare:
        answer = complete(bare, prompt=[5, 6, 7], return_token_ids=True)
        chunks = events(bare.post("/v1/completions", json={"prompt": [5, 6, 7], "stream": True}))
    [choice] = answer["choices"]
    assert choice["text"] == ""
    assert choice["token_ids"] == expected["choices"][0]["token_ids"]
    assert len(chunks) == len(choice["token_ids"]) + (choice["finish_reason"] == "stop")
