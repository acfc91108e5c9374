"""Recurrent layers in vLLM: states of each layer's own size, whatever the scheduler does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Request
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.table import load_engine
from sgate_serve.engines.vllm.reading import config_overrides
from sgate_serve.errors import EngineError
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import Target
from tests.converters.test_convert import write_gates
from tests.engines.drive import Answer, greedy, prompt, run
from tests.engines.vllm.start import vllm_engine
from tests.families.test_equivalence import check_verified, converted
from tests.families.zoo import Variant, build
from tests.families.zoo_configs import HYBRID

pytestmark = pytest.mark.vllm

# Published configs have parts of the rotation for images. A page of the cache holds 128 tokens.
LONG = Variant(
    "qwen3_5_text",
    "long",
    "causal-lm",
    HYBRID
    | {"num_hidden_layers": 6, "full_attention_interval": 3, "max_position_embeddings": 512}
    | {
        "rope_parameters": {
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        }
    },
)
START = prompt(270, 7)
# One token and more, shorter and longer than what is solved at once and than a page; some begin
# alike.
REQUESTS = [
    Request(f"r{index}", tokens, greedy(6))
    for index, tokens in enumerate(
        [prompt(1, 1), prompt(2, 2), START, prompt(70, 3), START, (*START[:200], *prompt(40, 4))]
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = converted(LONG, tmp_path_factory.mktemp("long"), skip=2, index_price=0)["out"]
    layers = [layer for layer in Checkpoint.open(folder).spec.layers if layer.is_recurrent]
    assert len({layer.num_heads for layer in layers}) > 2, "states of several sizes, and a lost one"
    assert not min(layer.num_heads for layer in layers)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Answer]:
    return run(load_engine("torch", folder, SlotOptions(slots=2)), REQUESTS)


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the requests that the scheduler puts back."""
    from vllm.v1.core.sched.scheduler import Scheduler

    found, preempt = list[str](), Scheduler._preempt_request

    def listed(self: Any, request: Any, *rest: Any, **named: Any) -> None:
        found.append(request.request_id)
        preempt(self, request, *rest, **named)

    monkeypatch.setattr(Scheduler, "_preempt_request", listed)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["--max-num-batched-tokens=48"],
        ["--max-num-batched-tokens=48", "--no-enable-prefix-caching"],
        ["--max-num-batched-tokens=200"],
    ],
    ids=["chunks", "chunks-not-cached", "longer-chunks"],
)
def test_requests_together_have_the_tokens_of_transformers(
    words: list[str], folder: Path, expected: dict[str, Answer]
) -> None:
    with vllm_engine(folder, words) as engine:
        for every in (0, 2):
            assert run(engine, REQUESTS, every) == expected


def test_a_cached_prefix_goes_on_from_its_state(folder: Path, expected: dict[str, Answer]) -> None:
    with vllm_engine(folder) as engine:
        cached = list(cached_tokens(engine, START))
        assert cached == [0, 256]
        assert run(engine, REQUESTS) == expected


def cached_tokens(engine: Any, tokens: tuple[int, ...]) -> Iterator[int]:
    """Ask twice for one token; yield how many of the prompt the cache had."""
    import vllm

    for name in ("first", "again"):
        engine._add(name, tokens, vllm.SamplingParams(max_tokens=1, detokenize=False))
        outputs = []
        while engine.has_work():
            outputs += engine.engine.step()
        yield outputs[-1].num_cached_tokens


def test_a_request_that_was_put_back_starts_again(
    folder: Path, expected: dict[str, Answer], preempted: list[str]
) -> None:
    """Short prompts whose answers outgrow the cache, which holds a page for each state."""
    requests = [Request(f"g{seed}", prompt(120, seed), greedy(24)) for seed in range(3)]
    whole = run(load_engine("torch", folder, SlotOptions(slots=3)), requests)
    with vllm_engine(folder, ["--num-gpu-blocks-override=16"]) as engine:
        assert run(engine, requests) == whole
        assert preempted
        assert run(engine, REQUESTS) == expected


@pytest.mark.parametrize("kind", ["attention", "recurrent", "both"])
def test_a_model_may_lose_all_blocks_of_a_kind(kind: str, tmp_path: Path) -> None:
    """vLLM caches no prefixes without states, and takes no model for one without a cache."""
    build(LONG, seed=1).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    lost = {"attention": (False,), "recurrent": (True,), "both": (False, True)}[kind]
    closed = {
        f"{base.spec.family.layer_name(index)}.kv_groups": np.zeros(layer.num_kv_heads)
        for index, layer in enumerate(base.spec.layers)
        if layer.is_recurrent in lost
    }
    write_gates(base, tmp_path / "gates", **closed)
    at = {name: tmp_path / name for name in ("base", "gates", "out")}
    convert(ConvertOptions(str(at["base"]), at["out"], at["gates"]))
    check_verified(at, "vllm")
    same = [Request(name, START, greedy(3)) for name in ("first", "second")]
    reference = load_engine("torch", at["out"], SlotOptions(slots=2))
    with vllm_engine(at["out"]) as engine:
        assert run(engine, same, 4) == run(reference, same)


def test_in_bfloat16_it_is_as_near_as_transformers(folder: Path) -> None:
    tokens = np.array(prompt(150, 5))
    exact = TorchModel.converted(folder).logits(tokens)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].float().numpy()
    rounding = np.abs(logits - exact).mean()
    with vllm_engine(folder, dtype="bfloat16") as engine:
        found = np.abs(engine.logits(tokens) - exact).mean()
    assert 0 < found < 1.5 * rounding


def test_a_uniform_result_runs_through_the_plugin_on_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads have widths that the kernels of vLLM's own class lack."""
    at = converted(LONG, tmp_path, skip=1, target=Target(uniform=True))
    assert Checkpoint.open(at["out"]).config["model_type"] == LONG.family
    monkeypatch.setattr("sgate_serve.engines.vllm.reading.has_gpu", lambda: False)
    own = {"architectures": ["SGateQwen3_5ForCausalLM"]}
    assert config_overrides(at["out"], []) == own
    check_verified(at, "vllm")
    monkeypatch.setattr("sgate_serve.engines.vllm.reading.has_gpu", lambda: True)
    assert config_overrides(at["out"], []) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about vLLM's kernels for CPU")
def test_vllms_own_class_computes_in_bfloat16_alone() -> None:
    """Once this fails, a newer vLLM may run stock folders on CPU by its own class."""
    assert torch.isfinite(rule_of_vllm(torch.bfloat16, 64)).all()
    for dtype, width in ((torch.float32, 64), (torch.float16, 64), (torch.bfloat16, 32)):
        with pytest.raises(RuntimeError, match=r"dtype mismatch|Unexpected head dim"):
            rule_of_vllm(dtype, width)


def rule_of_vllm(dtype: torch.dtype, width: int) -> torch.Tensor:
    """Let vLLM's kernel read a prompt of 3 tokens by 2 heads of one recurrent layer."""
    from vllm._custom_ops import chunk_gated_delta_rule_cpu

    tokens = torch.ones(1, 3, 2, width, dtype=dtype)
    found: torch.Tensor = chunk_gated_delta_rule_cpu(
        **dict.fromkeys(("query", "key", "value"), tokens),
        g=-torch.ones(1, 3, 2),
        beta=torch.ones(1, 3, 2, dtype=dtype),
        initial_state=torch.zeros(1, 2, width, width),
        output_final_state=True,
        cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
        head_first=False,
        use_qk_l2norm_in_kernel=True,
        initial_state_indices=torch.tensor([0], dtype=torch.int32),
    )[0]
    return found


def test_states_have_one_type(folder: Path) -> None:
    message = "keep their states in float32; leave --mamba-cache-dty"
    with (
        pytest.raises(EngineError, match=message),
        vllm_engine(folder, ["--mamba-cache-dtype=float16"]),
    ):
        pass


def test_drafts_are_refused(folder: Path) -> None:
    """Asked of the settings alone: vLLM loads numba to draft, and then starts no other engine."""
    from sgate_serve.engines.vllm.config import check_recurrent
    from sgate_serve.engines.vllm.start import engine_args

    ngrams = '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}'
    args = engine_args(folder, [f"--speculative-config={ngrams}"])
    message = "cannot go back to before a drafted token; leave --speculative-config out"
    with pytest.raises(EngineError, match=message):
        check_recurrent(args.create_engine_config())


@pytest.mark.parametrize("pieces", [[150], [1, 64, 65, 1, 19], [1] * 4], ids=str)
def test_the_rule_in_pieces_is_that_of_transformers(pieces: list[int]) -> None:
    from sgate_serve.engines.vllm.delta_rule import delta_rule, unit

    torch.manual_seed(0)
    length = sum(pieces)
    query, key = torch.randn(2, 3, 4, length, 10, dtype=torch.float32)
    value, decay = torch.randn(3, 4, length, 8), -torch.rand(3, 4, length)
    renewal, state = torch.rand(3, 4, length), torch.randn(3, 4, 10, 8)
    by_token = (each.transpose(1, 2) for each in (query, key, value, decay, renewal))
    expected, last = torch_recurrent_gated_delta_rule(
        *by_token, state, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    found = []
    for part in zip(
        *(torch.split(each, [*pieces], 2) for each in (unit(query) * 10**-0.5, unit(key), value)),
        *(torch.split(each, [*pieces], 2) for each in (decay, renewal)),
        strict=True,
    ):
        read, state = delta_rule(state, *part)
        found.append(read)
    torch.testing.assert_close(torch.cat(found, 2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-4)


def test_kernels_of_one_token_look_at_nothing_before() -> None:
    from sgate_serve.engines.vllm.delta_rule import convolved

    x, past = torch.randn(2, 5, 3), torch.randn(2, 1, 3)
    sums, last = convolved(past, x, torch.full((3, 1), 2.0))
    assert torch.equal(sums, 2 * x) and torch.equal(last, x[:, -1:])
