"""Parameters of vLLM over HTTP: how prompts are read, which tokens may come, and what is shown."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from sgate_serve.server.execution.logprob_counts import MAX_LOGPROB_VALUES
from tests.server.hash_engine import HashEngine
from tests.server.live import (
    CODEC,
    EOS_ID,
    TOKENIZER,
    VOCAB_SIZE,
    events,
    refusal,
    serving_engine,
    speaking,
    token_ids,
)
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.server.test_openai_sdk import LENIENT
from tests.text_model import BOS, EOS

Json = dict[str, Any]
TEXT = "the cat 🚀 sat"
[BOS_ID] = TOKENIZER.encode("").ids
USER = {"role": "user", "content": "hi"}
MIXED = [*token_ids("the"), EOS_ID, *token_ids(" cat 🚀"), BOS_ID, *token_ids(" sat")]
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
BOTH: tuple[tuple[str, Json], ...] = (
    (COMPLETIONS, {"prompt": "the cat"}),
    (CHATS, {"messages": [USER]}),
)


@pytest.fixture(scope="module")
def speaker() -> Iterator[httpx.Client]:
    with serving_engine(speaking(TEXT)) as client:
        yield client


@pytest.fixture(scope="module")
def cat() -> Iterator[httpx.Client]:
    with serving_engine(speaking("the cat")) as client:
        yield client


@pytest.fixture(scope="module")
def mixer() -> Iterator[httpx.Client]:
    """A client of a server whose texts have special tokens in the middle."""
    with serving_engine(HashEngine(VOCAB_SIZE, script=MIXED)) as client:
        yield client


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving_folder(tiny_folder(tmp_path_factory.mktemp("tiny")), slots=4) as client:
        yield client


def ask(client: httpx.Client, path: str = COMPLETIONS, **body: Any) -> Json:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def test_prompt_logprobs_have_vllms_shape(client: httpx.Client) -> None:
    for path, body in BOTH:
        answer = ask(client, path, **body, prompt_logprobs=2, max_tokens=1, return_token_ids=True)
        owner = answer["choices"][0] if path == COMPLETIONS else answer
        ids, found = owner["prompt_token_ids"], owner["prompt_logprobs"]
        assert answer["usage"]["prompt_tokens"] == len(ids) == len(found)
        assert found[0] is None
        for token, entry in zip(ids[1:], found[1:], strict=True):
            texts = [CODEC.token_bytes(token + rank) for rank in range(2)]
            assert entry == {
                str(token + rank): {
                    "logprob": -0.5 - rank,
                    "rank": 1 + rank,
                    "decoded_token": texts[rank].decode("utf-8", "backslashreplace"),
                }
                for rank in range(2)
            }


def test_prompt_logprobs_are_those_of_an_echoed_prompt(noise: httpx.Client) -> None:
    body: Json = {
        "prompt": "the cat sat on",
        "logprobs": 1,
        "echo": True,
        "max_tokens": 0,
    }
    [plain] = ask(noise, **body)["choices"]
    [choice] = ask(noise, **body, prompt_logprobs=4)["choices"]
    assert choice["logprobs"] == plain["logprobs"]
    for position, entry in enumerate(choice["prompt_logprobs"][1:], start=1):
        (own, *others), logprobs = entry.values(), plain["logprobs"]
        assert own["decoded_token"] == logprobs["tokens"][position]
        assert own["logprob"] == logprobs["token_logprobs"][position]
        assert len(entry) == 4 + (own["rank"] > 4)
        assert [other["logprob"] for other in others] == sorted(
            (other["logprob"] for other in others), reverse=True
        )
    [one] = ask(noise, prompt="the cat", prompt_logprobs=0, max_tokens=1)["choices"]
    assert [entry and len(entry) for entry in one["prompt_logprobs"][:2]] == [None, 1]


def test_the_whole_vocabulary_is_shown_where_it_fits(client: httpx.Client) -> None:
    body: Json = {"max_tokens": 2, "ignore_eos": True, "return_tokens_as_token_ids": True}
    [choice] = ask(client, prompt="a", logprobs=-1, **body)["choices"]
    for best in choice["logprobs"]["top_logprobs"]:
        assert best.keys() == {f"token_id:{token}" for token in range(VOCAB_SIZE)}
    chat = ask(client, CHATS, messages=[USER], logprobs=True, top_logprobs=-1, **body)
    assert [len(entry["top_logprobs"]) for entry in chat["choices"][0]["logprobs"]["content"]] == [
        VOCAB_SIZE
    ] * 2
    [choice] = ask(client, prompt="a", prompt_logprobs=-1)["choices"]
    assert all(len(entry) == VOCAB_SIZE for entry in choice["prompt_logprobs"][1:])


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_more_of_the_vocabulary_than_fits_is_refused(client: httpx.Client, field: str) -> None:
    num_tokens = MAX_LOGPROB_VALUES // (1 + VOCAB_SIZE) // 8 + 1
    body: Json = {"prompt": [[5] * num_tokens] * 8, "max_tokens": num_tokens, field: -1}
    error = refusal(client.post(COMPLETIONS, json=body))
    assert error["param"] == field
    assert (
        f"at most {MAX_LOGPROB_VALUES} are returned; lower n, max_tokens or `{field}`"
        in (error["message"])
    )


def test_tokens_are_named_by_their_ids_where_the_client_asks(speaker: httpx.Client) -> None:
    body: Json = {"logprobs": 1, "return_tokens_as_token_ids": True, "max_tokens": 50}
    [choice] = ask(speaker, prompt="a", **body)["choices"]
    names = [f"token_id:{token}" for token in token_ids(TEXT)]
    assert choice["logprobs"]["tokens"] == names
    assert [[*best] for best in choice["logprobs"]["top_logprobs"]] == [[name] for name in names]
    body |= {"logprobs": True, "top_logprobs": 1}
    [choice] = ask(speaker, CHATS, messages=[USER], **body)["choices"]
    content = choice["logprobs"]["content"]
    assert [entry["token"] for entry in content] == names
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == TEXT


def test_a_stream_has_the_prompts_tokens_once_for_each_choice(client: httpx.Client) -> None:
    body: Json = {
        "stream": True,
        "return_token_ids": True,
        "max_tokens": 3,
        "ignore_eos": True,
    }
    prompts = [TOKENIZER.encode(text).ids for text in ("the cat", "a gate")]
    chunks = events(client.post(COMPLETIONS, json={"prompt": prompts, "n": 2, **body}))
    with_prompt = [c for chunk in chunks for c in chunk["choices"] if "prompt_token_ids" in c]
    found = {choice["index"]: choice["prompt_token_ids"] for choice in with_prompt}
    assert len(with_prompt) == 4
    assert found == {0: prompts[0], 1: prompts[0], 2: prompts[1], 3: prompts[1]}
    first, *others = events(client.post(CHATS, json={"messages": [USER], **body}))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    rendered = f"{BOS}user: hi\nassistant:"
    assert first["prompt_token_ids"] == TOKENIZER.encode(rendered, add_special_tokens=False).ids
    assert not any("prompt_token_ids" in chunk for chunk in others)


def test_usage_in_every_chunk_is_that_of_its_choice(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body: Json = {
        "stream": True,
        "stream_options": options,
        "max_tokens": 3,
        "ignore_eos": True,
    }
    prompt = [[5, 6], [7, 8, 9]]
    chunks = events(
        client.post(COMPLETIONS, json={"prompt": prompt, "return_token_ids": True, **body})
    )
    *others, last = chunks
    for index, num_prompt in enumerate((2, 3)):
        own = [chunk["usage"] for chunk in others if chunk["choices"][0]["index"] == index]
        assert [usage["completion_tokens"] for usage in own] == [1, 2, 3]
        assert all(usage["total_tokens"] == num_prompt + n for n, usage in enumerate(own, 1))
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    first, *_ = events(client.post(CHATS, json={"messages": [USER], **body}))
    assert first["usage"]["completion_tokens"] == 0


def test_prompts_that_are_too_long_may_be_cut(client: httpx.Client) -> None:
    text = "the cat sat on the mat and the dog sat on the log"
    ids = TOKENIZER.encode(text).ids
    body: Json = {"max_tokens": 1, "return_token_ids": True, "truncate_prompt_tokens": 5}
    for extra, kept in (
        ({}, [ids[0], *ids[-4:]]),
        ({"truncation_side": "left"}, ids[-5:]),
        ({"truncation_side": "right"}, ids[:5]),
        ({"add_special_tokens": False}, ids[-5:]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 508}, [ids[0], *ids[-3:]]),
    ):
        [choice] = ask(client, prompt=text, **{**body, **extra})["choices"]
        assert choice["prompt_token_ids"] == kept
    [choice] = ask(client, prompt=ids, echo=True, **body)["choices"]
    assert choice["prompt_token_ids"] == ids[-5:]
    assert choice["text"].startswith(CODEC.decode(ids[-5:]))
    chat = ask(client, CHATS, messages=[USER], **body)
    assert CODEC.decode(chat["prompt_token_ids"]).endswith("istant:")
    assert chat["usage"]["prompt_tokens"] == 5
    long = {"messages": [{"role": "user", "content": "q" * 600}], "truncate_prompt_tokens": -1}
    assert ask(client, CHATS, **long)["usage"]["prompt_tokens"] == 511


def test_special_tokens_are_added_where_the_client_asks(client: httpx.Client) -> None:
    body: Json = {"max_tokens": 1, "return_token_ids": True}
    [choice] = ask(client, prompt="the", add_special_tokens=False, **body)["choices"]
    assert choice["prompt_token_ids"] == token_ids("the")
    plain = ask(client, CHATS, messages=[USER], **body)
    added = ask(client, CHATS, messages=[USER], add_special_tokens=True, **body)
    assert added["prompt_token_ids"] == [BOS_ID, *plain["prompt_token_ids"]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("extra", "text", "reason"),
    [
        ({}, "the cat", None),
        ({"stop_token_ids": [EOS_ID]}, "the cat", None),
        ({"stop_token_ids": [EOS_ID], "ignore_eos": True}, "the cat", EOS_ID),
        ({"stop": [EOS], "ignore_eos": True}, "the cat", EOS),
        ({"stop": [EOS], "include_stop_str_in_output": True}, f"the cat{EOS}", EOS),
        ({"stop": ["he"]}, "t", "he"),
        ({"stop_token_ids": token_ids(" cat")}, "the", token_ids(" cat")[0]),
        (
            {"stop_token_ids": token_ids(" cat"), "include_stop_str_in_output": True},
            "the cat",
            token_ids(" cat")[0],
        ),
        ({"max_tokens": 1}, "the", None),
    ],
)
def test_what_ended_the_text_is_said_and_may_be_shown(
    cat: httpx.Client, stream: bool, extra: Json, text: str, reason: str | int | None
) -> None:
    response = cat.post(COMPLETIONS, json={"prompt": "a", "stream": stream, **extra})
    answers = events(response) if stream else [response.json()]
    choices = [answer["choices"][0] for answer in answers]
    assert "".join(choice["text"] for choice in choices) == text
    found = [choice.get("stop_reason") for choice in choices]
    assert [own for own in found if own is not None] == ([] if reason is None else [reason])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({}, "the cat 🚀 sat"),
        ({"skip_special_tokens": False}, f"the{EOS} cat 🚀{BOS} sat"),
        ({"stop": [" sat"], "include_stop_str_in_output": True}, "the cat 🚀 sat"),
        ({"stop": ["🚀"], "include_stop_str_in_output": True}, "the cat 🚀"),
        ({"stop": ["🚀"]}, "the cat "),
    ],
)
def test_what_is_shown_of_special_tokens_and_stop_strings(
    mixer: httpx.Client, extra: Json, text: str, stream: bool
) -> None:
    body: Json = {"max_tokens": len(MIXED), "ignore_eos": True, "stream": stream, **extra}
    response = mixer.post(COMPLETIONS, json={"prompt": "a", **body})
    answers = events(response) if stream else [response.json()]
    assert "".join(answer["choices"][0]["text"] for answer in answers) == text


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_echoes_the_message_that_it_goes_on_with(
    speaker: httpx.Client, stream: bool
) -> None:
    last = {"role": "critic", "content": [{"type": "text", "text": "I say "}]}
    wanted = {"add_generation_prompt": False, "continue_final_message": True}

    def answer(messages: list[Any], **extra: Any) -> tuple[str, str]:
        body = {"messages": messages, "echo": True, "stream": stream, "max_tokens": 50, **extra}
        response = speaker.post(CHATS, json=body)
        if not stream:
            message = response.json()["choices"][0]["message"]
            return message["role"], message["content"]
        deltas = [chunk["choices"][0]["delta"] for chunk in events(response)]
        return deltas[0]["role"], "".join(delta.get("content", "") for delta in deltas)

    assert answer([USER, last], **wanted) == ("critic", f"I say {TEXT}")
    assert answer([USER]) == ("assistant", TEXT)


def test_templates_see_any_role_and_field(client: httpx.Client) -> None:
    tokens = ask(client, "/tokenize", messages=[{"role": "critic", "content": "no", "mood": [1]}])
    assert CODEC.decode(tokens["tokens"]) == "critic: no\nassistant:"


def test_the_id_of_a_body_is_that_of_the_response(client: httpx.Client) -> None:
    for path, body in BOTH:
        for headers, name in (({}, "mine-1"), ({"x-request-id": "header"}, "header")):
            own = {**body, "max_tokens": 1, "request_id": "mine-1"}
            response = client.post(path, json=own, headers=headers)
            assert response.headers["x-request-id"] == name
            assert response.json()["id"].endswith(f"-{name}")


def test_only_allowed_tokens_come_and_no_bad_words(noise: httpx.Client) -> None:
    body: Json = {"prompt": "the cat", "max_tokens": 12, "return_token_ids": True}
    for temperature in (0, 1):
        own = {**body, "temperature": temperature, "ignore_eos": True, "seed": 1}
        [choice] = ask(noise, **own, allowed_token_ids=[70, 80])["choices"]
        assert {*choice["token_ids"]} <= {70, 80}
    letters = [token for letter in "abcdef" for token in token_ids(letter)]
    greedy = {**body, "temperature": 0, "allowed_token_ids": letters}
    [plain] = ask(noise, **greedy)["choices"]
    [one] = ask(noise, **greedy, bad_words=[plain["text"][0]])["choices"]
    assert plain["text"][0] not in one["text"]
    [two] = ask(noise, **greedy, bad_words=[plain["text"][:2]])["choices"]
    assert two["text"][0] == plain["text"][0]
    assert plain["text"][:2] not in two["text"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
        ({"prompt_logprobs": -2}, "prompt_logprobs", "greater than or equal to -1"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "is not for `stream: true`"),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids", "only for `logprobs`"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "0 leaves nothing to read"),
        ({"truncate_prompt_tokens": 1}, "truncate_prompt_tokens", "leave no room for text"),
        ({"truncate_prompt_tokens": 99_999}, "truncate_prompt_tokens", "send at most that, or -1"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 300}, "prompt", "may be generated; shorten"),
        ({"truncation_side": "left"}, "truncation_side", "only for `truncate_prompt_tokens`"),
        ({"request_id": "a b"}, "request_id", "up to 128 letters, digits"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1 item"),
        ({"allowed_token_ids": [10**9]}, "allowed_token_ids", "has the token id 1000000000; this"),
        ({"bad_words": [""]}, "bad_words.0", "at least 1 character"),
        ({"bad_words": [" "] * 257}, "bad_words", "a list of at most 256 texts"),
        (
            {"allowed_token_ids": [5], "structured_outputs": {"regex": "a"}},
            "allowed_token_ids",
            "cannot be combined with a grammar; leave one out",
        ),
        (
            {"allowed_token_ids": [EOS_ID], "min_tokens": 1},
            "min_tokens",
            "min_tokens may leave no token to choose; allow more, or leave it out",
        ),
    ],
)
def test_values_without_sense_are_refused(
    noise: httpx.Client, body: Json, param: str, message: str
) -> None:
    response = noise.post(COMPLETIONS, json={"prompt": "the cat", **body})
    assert response.status_code == 400
    error = refusal(response)
    assert error["param"] == param
    assert message in error["message"]


def test_the_openai_sdk_passes_them_on(speaker: httpx.Client) -> None:
    sdk = OpenAI(base_url=f"{speaker.base_url}/v1", **LENIENT)
    extra = {"prompt_logprobs": 1, "return_token_ids": True, "request_id": "mine"}
    answer = sdk.completions.create(model="tiny-model", prompt="a", extra_body=extra)
    assert answer.id == "cmpl-mine"
    assert len(answer.choices[0].model_dump()["prompt_logprobs"]) == 2
