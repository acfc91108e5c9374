"""Mixtures of experts in vLLM: uneven layers of uneven experts, shards of them, and refusals."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.family import DOWN, MLP
from sgate_serve.bench.comparison import DENSE, PRUNED
from sgate_serve.bench.explain.attribution import attribute
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Request
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.table import load_engine
from sgate_serve.engines.work import ATTENDING, PROJECTIONS, UNITS
from sgate_serve.errors import EngineError
from sgate_serve.gates.keys import EXPERTS, HEADS, MLP_UNITS, gate_sites
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import Target
from tests.checkpoint.ragged.puzzle_folder import stock_model
from tests.converters.test_convert import write_gates
from tests.engines.drive import greedy, prompt, run
from tests.engines.vllm.start import vllm_engine, worker_engine
from tests.families.zoo import Variant, build
from tests.families.zoo_configs import DECODER
from tests.small_llama import random_tokens

pytestmark = pytest.mark.vllm

CHOOSING = DECODER | {"num_experts_per_tok": 2}
QWEN = CHOOSING | {"num_experts": 6, "moe_intermediate_size": 37}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": CHOOSING | {"num_local_experts": 6},
    "qwen2_moe": QWEN | {"shared_expert_intermediate_size": 18, "norm_topk_prob": False},
    "qwen3_moe": QWEN | {"head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [1]},
    "glm4_moe": CHOOSING
    | {"n_routed_experts": 6, "moe_intermediate_size": 37, "routed_scaling_factor": 1.5}
    | {"head_dim": 16, "use_qk_norm": True, "first_k_dense_replace": 0},
    "gemma4_text": QWEN
    | {"enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0}
    | {"head_dim": 16, "global_head_dim": 16, "sliding_window": 5},
    "gpt_oss": CHOOSING
    | {"num_local_experts": 6, "head_dim": 16, "sliding_window": 5, "initializer_range": 0.5},
}
TOKENS = 1 + random_tokens(20, vocab_size=96)
REQUESTS = [Request(f"r{seed}", prompt(9 + seed, seed), greedy(8)) for seed in range(3)]


def uneven(family: str, root: Path, **options: Any) -> Path:
    """Convert a mixture whose layers keep 5, 3 and 1 experts; some of them have no units left."""
    build(Variant(family, "uneven", "causal-lm", CONFIGS[family]), 0).save_pretrained(root / "base")
    base, generator = Checkpoint.open(root / "base"), np.random.default_rng(0)
    values: dict[str, NDArray[np.float64]] = {}
    for key, site in gate_sites(base.spec).items():
        gates: NDArray[np.float64] = np.ones(site.num_gates)
        if site.kind == EXPERTS:
            gates[generator.permutation(site.num_gates)[: 1 + 2 * site.layer]] = 0
        elif site.kind == MLP_UNITS:
            gates[generator.random(site.num_gates) < (1 if ".experts.2." in key else 0.4)] = 0
        elif site.kind == HEADS:
            gates[0] = 0
        else:
            continue
        values[key] = gates
    write_gates(base, root / "gates", **values)
    convert(ConvertOptions(str(root / "base"), root / "out", root / "gates", **options))
    return root / "out"


def check_outputs(root: Path, words: list[str] | None = None) -> None:
    """Compare tokens with our torch engine, and logits with the masked dense model."""
    expected = run(load_engine("torch", root / "out", SlotOptions(slots=3)), REQUESTS)
    start = vllm_engine(root / "out") if words is None else worker_engine(root / "out", words)
    with start as engine:
        assert run(engine, REQUESTS) == expected
        found = engine.logits(TOKENS)
    masked = TorchModel.masked_dense(open_masked(root / "base", root / "gates"))
    np.testing.assert_allclose(found, masked.logits(TOKENS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_uneven_experts_generate_the_same_tokens(family: str, tmp_path: Path) -> None:
    spec = Checkpoint.open(uneven(family, tmp_path)).spec
    assert [len(layer.experts) for layer in spec.layers if layer.experts][-1] == 1
    # Experts with biases keep a unit.
    assert min(spec.layers[0].experts) == int(spec.has_bias(0, DOWN))
    assert spec.hidden_size % 32 and max(spec.layers[0].experts) % 32
    check_outputs(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "gemma4_text"])
def test_shards_divide_the_units_of_every_expert(family: str, tmp_path: Path) -> None:
    spec = Checkpoint.open(uneven(family, tmp_path)).spec
    assert any(width % 2 for width in spec.layers[0].experts)
    check_outputs(tmp_path, ["--tensor-parallel-size=2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--enable-expert-parallel"], "crash or compute NaN with --enable-expert-parallel, "),
        (
            ['--hf-overrides={"hidden_act": "relu"}'],
            "vLLM's experts have no hidden_act 'relu', only silu, gelu",
        ),
    ],
)
def test_settings_that_a_mixture_cannot_have(
    words: list[str], message: str, tmp_path: Path
) -> None:
    folder = uneven("mixtral", tmp_path)
    with pytest.raises(EngineError, match=re.escape(message)), vllm_engine(folder, words):
        pass


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"enable_eplb": True}, "--enable-eplb is not supported for pruned mixtures"),
        ({"data_parallel_size": 2}, "give --tensor-parallel-size alone"),
    ],
)
def test_parallel_settings_that_need_more_than_this_process(
    parallel: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from vllm.config import ParallelConfig

    from sgate_serve.engines.vllm.config import check_mixture

    settings = ParallelConfig()
    for name, value in parallel.items():
        setattr(settings, name, value)
    model = SimpleNamespace(quantization=None)
    spec = Checkpoint.open(uneven("mixtral", tmp_path)).spec
    with pytest.raises(EngineError, match=message):
        check_mixture(spec, SimpleNamespace(model_config=model, parallel_config=settings))


def test_experts_in_int8_compute_with_the_numbers_that_torch_computes_with(tmp_path: Path) -> None:
    """Attention rounds its inputs to int8 there, so the block is given the same ones in both."""
    from vllm.forward_context import set_forward_context

    folder = uneven("qwen3_moe", tmp_path, precision="int8")
    stock = TorchModel.converted(folder).model.get_submodule("model.layers.0.mlp")
    x = torch.randn(7, DECODER["hidden_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), vllm_engine(folder) as engine:
        core = engine.engine.engine_core.engine_core
        block = core.model_executor.driver_worker.worker.model_runner.model.stack.layers[0].blocks
        with set_forward_context(None, engine.engine.vllm_config):
            found = block[MLP](x.clone())
        expected = stock(x[None])[0]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-5)


def test_experts_in_int8_are_not_timed_for_they_are_held_in_floats(tmp_path: Path) -> None:
    from sgate_serve.engines.vllm.timed import TimedVllm

    folder = uneven("qwen3_moe", tmp_path, precision="int8")
    with pytest.raises(EngineError, match="would hold its int8 experts in floats, so that no id"):
        TimedVllm.load(folder, 1, 16, None, ())


def test_an_older_vllm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.model_executor.layers.fused_moe as fused

    folder = uneven("mixtral", tmp_path)
    monkeypatch.delattr(fused, "FusedMoEFactory")
    message = "mixtures of experts need vLLM 0.27 or newer, found 0."
    with pytest.raises(EngineError, match=message), vllm_engine(folder):
        pass


def test_time_in_experts_is_that_of_units(tmp_path: Path) -> None:
    wide = CONFIGS["mixtral"] | {"hidden_size": 128}
    build(Variant("mixtral", "dense", "causal-lm", wide), 0).save_pretrained(tmp_path / "dense")
    pruned = uneven("mixtral", tmp_path)
    models = {DENSE: Checkpoint.open(tmp_path / "dense"), PRUNED: Checkpoint.open(pruned)}
    workload = Workload(decode_steps=2, context_tokens=4, prefill_tokens=8, batches=(2,))
    for phase in attribute(models, "vllm", workload).values():
        for one in phase.values():
            assert all({PROJECTIONS, ATTENDING, UNITS} <= layer.keys() for layer in one.layers)


def test_layers_have_windows_of_their_own(tmp_path: Path) -> None:
    stock_model(tmp_path / "base", head_dim=32)
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    with vllm_engine(tmp_path / "out") as engine:
        found = engine.logits(TOKENS)
    masked = TorchModel.masked_dense(open_masked(tmp_path / "base", None))
    np.testing.assert_allclose(found, masked.logits(TOKENS), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("qwen3_moe", "Qwen3MoeForCausalLM"),
        ("glm4_moe", "Glm4MoeForCausalLM"),
        ("gemma4_text", "Gemma4ForCausalLM"),
        ("gpt_oss", "GptOssForCausalLM"),
    ],
)
def test_a_uniform_mixture_loads_as_the_stock_class(
    family: str, architecture: str, tmp_path: Path
) -> None:
    # On CPU, vLLM takes clamped units in multiples of 32 alone.
    wide = CONFIGS[family] | {"hidden_size": 64, "intermediate_size": 64}
    wide |= dict.fromkeys(("head_dim", "global_head_dim"), 32)
    wide |= {"initializer_range": 0.2}
    build(Variant(family, "uniform", "causal-lm", wide), 0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    closed = {
        key: np.arange(site.num_gates) != site.layer
        for key, site in gate_sites(base.spec).items()
        if site.kind == EXPERTS
    }
    gates = write_gates(base, tmp_path / "gates", **closed)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates, target=Target(uniform=True)))
    with vllm_engine(tmp_path / "out") as engine:
        assert engine.engine.model_config.architecture == architecture
        found = engine.logits(TOKENS)
    masked = TorchModel.masked_dense(open_masked(base.folder, gates))
    np.testing.assert_allclose(found, masked.logits(TOKENS), rtol=0, atol=1e-4)
