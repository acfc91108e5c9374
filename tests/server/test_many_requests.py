"""Hundreds of requests at once on the real engine, many of which are given up on the way."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx

from tests.server.live import wait_until
from tests.server.onnx_server import serving_folder, tiny_folder

NUM_REQUESTS, NUM_KINDS = 300, 30
CANCELLED_SHARE = 0.4
WORDS = ("the cat", "sat on", "a mat", "猫が", "🚀", "naïve", "gate closed", "lets nothing")
Call = tuple[str, dict[str, Any]]
Tokens = list[list[int]]


def some_call(random: random.Random) -> Call:
    """A completion or a chat of some length, streamed or whole, greedy or with a seed."""
    text = " ".join(random.choices(WORDS, k=random.randint(1, 30)))
    body: dict[str, Any] = {
        "max_tokens": random.randint(1, 24),
        "temperature": random.choice([0, 0, 1]),
        "seed": random.randint(0, 99),
        "n": random.choice([1, 1, 1, 2]),
        "stream": random.random() < 0.5,
        "return_token_ids": True,
        "ignore_eos": random.random() < 0.5,
    }
    if random.random() < 0.3:
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}
    return "/v1/completions", body | {"prompt": text}


async def tokens_of(client: httpx.AsyncClient, call: Call) -> Tokens:
    """Send the request and return the tokens of each choice."""
    path, body = call
    found: Tokens = [[] for _ in range(body["n"])]
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        if not body["stream"]:
            answers = [json.loads(await response.aread())]
        else:
            lines = [line async for line in response.aiter_lines() if line]
            assert lines[-1] == "data: [DONE]"
            answers = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    for answer in answers:
        for choice in answer["choices"]:
            found[choice["index"]] += choice["token_ids"]
    return found


async def ask_all(url: str, calls: list[Call], random: random.Random) -> list[Tokens | None]:
    """Send all at once; return the tokens of each, None where the client hung up."""
    limits = httpx.Limits(max_connections=len(calls))
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask(call: Call, seconds: float | None) -> Tokens | None:
            try:
                async with asyncio.timeout(seconds):
                    return await tokens_of(client, call)
            except TimeoutError:
                return None

        # Most of those who give up do so early, so that some do on any machine.
        patience = [
            4 * random.random() ** 3 if random.random() < CANCELLED_SHARE else None for _ in calls
        ]
        return await asyncio.gather(*map(ask, calls, patience))


async def ask_one_by_one(url: str, calls: list[Call]) -> list[Tokens]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return [await tokens_of(client, call) for call in calls]


def test_survivors_are_as_alone_and_no_slot_stays_taken(tmp_path: Path) -> None:
    chosen = random.Random(0)
    kinds = [some_call(chosen) for _ in range(NUM_KINDS)]
    asked = [chosen.randrange(NUM_KINDS) for _ in range(NUM_REQUESTS)]
    with serving_folder(tiny_folder(tmp_path), slots=8) as client:
        url = str(client.base_url)
        alone = asyncio.run(ask_one_by_one(url, kinds))
        together = asyncio.run(ask_all(url, [kinds[kind] for kind in asked], chosen))
        pairs = zip(asked, together, strict=True)
        survivors = [(kind, found) for kind, found in pairs if found is not None]
        assert 100 < len(survivors) < 290
        assert [found for _, found in survivors] == [alone[kind] for kind, _ in survivors]
        wait_until(lambda: load(client) == ["0.0", "0.0", "0.0"])
        # Nothing that was given up disturbs what comes later.
        assert asyncio.run(ask_one_by_one(url, kinds[:5])) == alone[:5]


def load(client: httpx.Client) -> list[str]:
    """Requests that run, requests that wait, and the share of the cache in use."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    lines = client.get("/metrics").text.splitlines()
    own = [[line for line in lines if line.startswith(f"vllm:{name}{{")] for name in names]
    return [line.split()[-1] for [line] in own]
