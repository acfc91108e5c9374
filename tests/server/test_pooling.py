"""Embeddings and classification over HTTP, on an encoder of hashes."""

import base64
import threading
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from sgate_serve.text.tokenization import TextCodec
from tests.server.encoders import HEAD, TOKENIZER, encoder_of, expected
from tests.server.hash_encoder import HashEncoder
from tests.server.live import MODEL, VOCAB_SIZE, hang_on, refusal, serving_model, wait_until
from tests.text_model import BOS, chat_template


def embed(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_embeddings_have_openais_shape_and_the_order_of_the_inputs(
    embedder: httpx.Client,
) -> None:
    texts = [f"the cat {index}" for index in range(11)]
    answer = embed(embedder, input=texts, model=MODEL, user="me", encoding_format="float")
    assert answer.keys() == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    num_tokens = sum(len(TOKENIZER.encode(text).ids) for text in texts)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    for index, (text, entry) in enumerate(zip(texts, answer["data"], strict=True)):
        assert (entry["object"], entry["index"]) == ("embedding", index)
        assert entry["embedding"] == expected(text).tolist()


def test_every_form_of_input_is_read(embedder: httpx.Client) -> None:
    ids = TOKENIZER.encode("the cat").ids
    [one] = embed(embedder, input="the cat")["data"]
    assert one["embedding"] == expected("the cat").tolist()
    for form in (ids, [ids], ["the cat"]):
        assert embed(embedder, input=form)["data"] == [one]
    assert len(embed(embedder, input=[ids, [5]])["data"]) == 2
    for nothing in ("", [""]):
        [empty] = embed(embedder, input=nothing)["data"]
        assert empty["embedding"] == expected("").tolist()


def test_base64_is_little_endian_float32(embedder: httpx.Client) -> None:
    answer = embed(embedder, input=["the cat", "a gate"], encoding_format="base64")
    for text, entry in zip(("the cat", "a gate"), answer["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
        assert decoded.tolist() == expected(text).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("endianness", ["little", "big", "native"])
def test_base64_has_the_numbers_that_torch_has(
    embedder: httpx.Client, dtype: str, endianness: str
) -> None:
    body = {"encoding_format": "base64", "embed_dtype": dtype, "endianness": endianness}
    [entry] = embed(embedder, input="the cat", **body)["data"]
    content = bytearray(base64.b64decode(entry["embedding"]))
    kind = getattr(torch, dtype)
    own = torch.tensor(expected("the cat")).to(kind)
    if endianness == "big":
        content = bytearray(np.frombuffer(content, f"u{own.itemsize}").byteswap().tobytes())
    assert torch.equal(torch.frombuffer(content, dtype=kind), own)


def test_bfloat16_is_rounded_as_in_torch() -> None:
    from sgate_serve.server.protocol.pooling_responses import _upper_halves

    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    ties = (np.arange(64, dtype=np.uint32) << 16) + 0x3F808000
    numbers = np.concatenate([bits, ties]).view(np.float32)
    halves = torch.from_numpy(_upper_halves(numbers).view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(
        halves, torch.from_numpy(numbers).bfloat16(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    ("widths", "dimensions", "message"),
    [
        (None, 3, "is 3, but this model's embeddings have 4; leave it out"),
        ((2, 3), 1, "is 1, but this model's embeddings can have 2, 3; send one of these"),
        ((), 5, "is 5, but this model's embeddings can have at most 4; send one of these"),
        ((2, 3), 3, None),
        ((), 1, None),
        ((2, 3), 4, None),
    ],
)
def test_embeddings_are_cut_to_a_width_that_they_were_trained_for(
    widths: tuple[int, ...] | None, dimensions: int, message: str | None
) -> None:
    with serving_model(encoder_of("embed", normalize=True, widths=widths)) as client:
        body = {"input": "the cat", "dimensions": dimensions}
        if message is not None:
            assert message in refusal(client.post("/v1/embeddings", json=body))["message"]
            return
        [entry] = embed(client, **body)["data"]
    own = torch.tensor(expected("the cat"))[:dimensions]
    wanted = torch.nn.functional.normalize(own, dim=-1)
    assert entry["embedding"] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_conversation_is_read_as_its_template_shows_it() -> None:
    engine = HashEncoder(VOCAB_SIZE)
    codec = TextCodec(TOKENIZER, chat_template())
    messages = [{"role": "user", "content": "the cat"}]
    with serving_model(encoder_of("embed", engine, codec=codec, prompt="say ")) as client:
        embed(client, messages=messages)
        embed(client, messages=messages, add_generation_prompt=True, add_special_tokens=True)
        embed(client, input="the cat", add_special_tokens=False)
    shown = TOKENIZER.encode(f"{BOS}user: the cat\n", add_special_tokens=False).ids
    assert [list(request.prompt) for request in engine.asked] == [
        shown,
        TOKENIZER.encode(f"{BOS}user: the cat\nassistant:").ids,
        TOKENIZER.encode("say the cat", add_special_tokens=False).ids,
    ]


def test_only_the_models_own_width_is_accepted(embedder: httpx.Client) -> None:
    embed(embedder, input="a", dimensions=4)
    response = embedder.post("/v1/embeddings", json={"input": "a", "dimensions": 2})
    assert response.status_code == 400
    error = refusal(response)
    assert error["param"] == "dimensions"
    assert "is 2, but this model's embeddings have 4; leave it out" in error["message"]


def test_embeddings_are_normalized_where_the_model_is_meant_so() -> None:
    with serving_model(encoder_of("embed", normalize=True)) as client:
        vector = np.array(embed(client, input="the cat")["data"][0]["embedding"])
    assert np.linalg.norm(vector) == pytest.approx(1)
    own = expected("the cat").astype(np.float64)
    assert vector == pytest.approx(own / np.linalg.norm(own), abs=1e-6)


def test_zeros_stay_zeros_when_normalized() -> None:
    from sgate_serve.server.protocol.pooling_responses import unit_length

    assert unit_length(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def classify(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/classify", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_classes_have_vllms_shape(classifier: httpx.Client) -> None:
    answer = classify(classifier, input=["the cat", "a gate"], model=MODEL)
    assert answer.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert answer["id"].startswith("classify-")
    assert answer["object"] == "list"
    assert answer["usage"].keys() == {"prompt_tokens", "total_tokens", "completion_tokens"}
    for index, (text, entry) in enumerate(zip(("the cat", "a gate"), answer["data"], strict=True)):
        scores = HEAD.scores(expected(text, width=3))
        assert entry == {
            "index": index,
            "label": HEAD.names[int(scores.argmax())],
            "probs": pytest.approx(scores.tolist()),
            "num_classes": 3,
        }
        assert sum(entry["probs"]) == pytest.approx(1)


def test_pairs_are_read_with_their_segments(classifier: httpx.Client) -> None:
    scores = HEAD.scores(expected("the cat", "a gate", 3)).tolist()
    [one] = classify(classifier, input="the cat", text_pair="a gate")["data"]
    assert one["probs"] == pytest.approx(scores)
    body = {"input": ["x", "the cat"], "text_pair": ["y", "a gate"]}
    assert classify(classifier, **body)["data"][1]["probs"] == pytest.approx(scores)
    assert classify(classifier, input="a gate", text_pair="the cat")["data"][0] != one


LONG = "the cat " * 60


def test_truncation_keeps_the_special_tokens() -> None:
    engine = HashEncoder(VOCAB_SIZE)
    with serving_model(encoder_of("embed", engine)) as client:
        embed(client, input=[LONG, "the"], truncate_prompt_tokens=-1)
        embed(client, input=LONG, truncate_prompt_tokens=9)
        embed(client, input=list(range(80)), truncate_prompt_tokens=5)
    full = TOKENIZER.encode(LONG).ids
    longest, short, cut, ids = (request.prompt for request in engine.asked)
    assert longest == (*full[:63], full[-1])
    assert short == tuple(TOKENIZER.encode("the").ids)
    assert cut == (*full[:8], full[-1])
    assert ids == (0, 1, 2, 3, 4)


def test_many_callers_get_their_own_answers() -> None:
    texts = [f"the cat {index}" for index in range(24)]
    answers: dict[str, Any] = {}
    engine = HashEncoder(VOCAB_SIZE, step_seconds=0.005)
    with serving_model(encoder_of("embed", engine)) as client:

        def ask(text: str) -> None:
            answers[text] = embed(client, input=[text, "shared"])["data"][0]["embedding"]

        threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {text: expected(text).tolist() for text in texts}


def test_queue_time_and_disconnects_bound_an_encoder_too() -> None:
    engine = HashEncoder(VOCAB_SIZE, step_seconds=0.1)
    options = {"max_queue": 20, "request_timeout_seconds": 0.25}
    with serving_model(encoder_of("embed", engine), **options) as client:
        response = client.post("/v1/embeddings", json={"input": ["a"] * 20})
        assert response.status_code == 504
        wait_until(lambda: not engine.has_work())
        connection = hang_on(client, {"input": ["a"] * 20}, "/v1/embeddings")
        wait_until(engine.has_work)
        response = client.post("/v1/embeddings", json={"input": "a"})
        assert response.status_code == 429
        connection.close()
        wait_until(lambda: not engine.has_work())
        assert client.post("/v1/embeddings", json={"input": "a"}).is_success


def test_encoder_that_fails_or_refuses_says_so() -> None:
    engine = HashEncoder(VOCAB_SIZE)
    with serving_model(encoder_of("embed", engine)) as client:
        engine.max_model_len = 1
        error = refusal(client.post("/v1/embeddings", json={"input": [5, 6]}))
        assert "this model reads 1 tokens" in error["message"]
        assert error["code"] == "context_length_exceeded"
        engine.max_model_len = 64
        engine.fails.set()
        response = client.post("/v1/embeddings", json={"input": "a"})
        assert response.status_code == 500
        assert client.get("/health").status_code == 503


def test_metrics_count_texts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), serving_model(encoder_of("classify")) as client:
        classify(client, input=[[5, 6], [7]])
        lines = client.get("/metrics").text.splitlines()
    name = f'model_name="{MODEL}"'
    for line in (
        f"vllm:prompt_tokens_total{{{name}}} 3.0",
        f"vllm:request_prompt_tokens_count{{{name}}} 2.0",
        f"vllm:e2e_request_latency_seconds_count{{{name}}} 2.0",
        f'vllm:request_success_total{{finished_reason="stop",{name}}} 2.0',
        f"vllm:generation_tokens_total{{{name}}} 0.0",
    ):
        assert line in lines
    assert 'path="/classify" status=200' in caplog.text
    assert f"model={MODEL} prompt_tokens=3\n" in caplog.text
