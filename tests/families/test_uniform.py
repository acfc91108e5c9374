"""Every family with `--uniform`: a stock model that a process without this package loads alike."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.family import OUTPUT
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates.keys import linear_sites
from sgate_serve.loaders.torch_model import dense_model
from sgate_serve.plan import Plan, Target
from sgate_serve.plan.figures import Figures
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import random_gates, write_gates
from tests.families.float64 import logits64
from tests.families.zoo import AUTO_CLASSES, VARIANTS, Variant, build, token_batch

# Loads each folder named on its standard input, by its auto class, and computes in fp32.
LOADER = """
import sys, numpy, torch, transformers
torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
for line in sys.stdin.read().splitlines():
    folder, auto = line.split("\\t")
    # Grouped products need widths of whole 16 bytes.
    is_mixture = "_experts" in open(folder + "/config.json").read()
    kernels = {"experts_implementation": "eager"} if is_mixture else {}
    kernels |= {"attn_implementation": "eager", "output_loading_info": True}
    model, report = getattr(transformers, auto).from_pretrained(
        folder, dtype=torch.float32, **kernels
    )
    left_out = {kind: sorted(report[kind]) for kind in report if report[kind]}
    assert not left_out, (folder, left_out)
    with torch.no_grad():
        output = model(torch.from_numpy(numpy.load(folder + "/ids.npy")))
    numpy.save(folder + "/found.npy", output[0].numpy())
assert not {"sgate_serve", "converters"} & set(sys.modules), "loaded by this package"
"""


@dataclass(frozen=True)
class Case:
    """One converted variant, and what a stock process computed with it."""

    root: Path
    plan: Plan
    found: NDArray[np.float32]


def write_model_and_gates(variant: Variant, root: Path, seed: int) -> None:
    """Write a small model and random gates of both kinds.

    Half of the KV groups are closed in every layer, not the same ones, and in one layer all of them
    or all MLP units.
    """
    build(variant, seed).save_pretrained(root / "base")
    base, random = Checkpoint.open(root / "base"), np.random.default_rng(seed)
    values = random_gates(base, seed, closed=0.3)
    for site in linear_sites(base.spec):
        values[site.key] = random.random(site.num_gates) > 0.15
    for index, layer in enumerate(base.spec.layers):
        name, num_kv = base.spec.family.layer_name(index), layer.num_kv_heads
        values[f"{name}.heads"] = np.ones(layer.num_heads)
        values[f"{name}.kv_groups"] = random.permutation(num_kv) < num_kv // 2
    # A mixture has no key for all units of a layer.
    blocks = [key for key in (f"{name}.kv_groups", f"{name}.mlp_units") if key in values]
    emptied = random.choice(blocks)
    values[emptied] = np.zeros_like(values[emptied])
    write_gates(base, root / "gates", **values)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    """Convert every variant for one uniform target or another, and load all in a fresh process."""
    roots, plans, lines = {}, {}, []
    for seed, variant in enumerate(VARIANTS):
        roots[str(variant)] = root = tmp_path_factory.mktemp(str(variant))
        write_model_and_gates(variant, root, seed)
        target = Target(align=(1, 4)[seed % 2], tensor_parallel=(1, 1, 2)[seed % 3], uniform=True)
        options = ConvertOptions(str(root / "base"), root / "out", root / "gates", target=target)
        plans[str(variant)] = convert(options)
        np.save(root / "out/ids.npy", token_batch(variant, 0).numpy())
        lines.append(f"{root / 'out'}\t{AUTO_CLASSES[variant.task].__name__}")
    hidden = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-P", "-c", LOADER],
        input="\n".join(lines),
        text=True,
        check=True,
        cwd=roots[str(VARIANTS[0])],
        env=os.environ | hidden,
    )
    return {
        name: Case(root, plans[name], np.load(root / "out/found.npy"))
        for name, root in roots.items()
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_process_without_this_package_gets_the_masked_dense_logits(
    variant: Variant, cases: Mapping[str, Case]
) -> None:
    case = cases[str(variant)]
    masked = open_masked(case.root / "base", case.root / "gates")
    expected = logits64(dense_model(masked, torch.float64), token_batch(variant, 0))
    np.testing.assert_allclose(case.found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    # Mixtures are a kind of layers of their own, and so are those with other heads or without keys.
    shape, dense = case.plan.layers[0].shape, masked.spec.layers[0]
    spec = masked.spec
    kinds = {
        (bool(one.experts), spec.head_type(index), one.has_keys)
        for index, one in enumerate(spec.layers)
    }
    assert len({layer.shape for layer in case.plan.layers}) == len(kinds)
    # Where no width is stated, hidden size / heads is the width of a head, so all heads stay. So do
    # they where one norm spans them.
    family = spec.family
    stays = 1 if family.has_stated_head_width and not family.has_joint_head_norms else 2
    # The only group of a layer is closed; for the output bias it stays, here with all heads.
    has_lone_group = min(layer.num_kv_heads for layer in spec.layers) == 1
    stays = 2 if has_lone_group and OUTPUT in spec.biased_roles else stays
    # Of the KV heads that layers share, each closes another.
    stays = stays if all(layer.has_keys for layer in spec.layers) else 2
    assert shape.num_kv_heads == dense.num_kv_heads * stays // 2
    heads = dense.num_heads * stays // 2
    # All of a recurrent head may happen to be closed by its rows.
    assert shape.num_heads == heads or (dense.is_recurrent and 0 < shape.num_heads < heads)
    assert shape.mlp_units < dense.mlp_units
    figures = Figures.of(case.plan, spec)
    assert figures.removed == figures.index_free and figures.revived > 0


@pytest.mark.parametrize("variant", VARIANTS[::3], ids=str)
def test_uniform_folder_verifies(variant: Variant, cases: Mapping[str, Case]) -> None:
    root = cases[str(variant)].root
    options = VerifyOptions(str(root / "base"), str(root / "out"), root / "gates", "torch")
    result = verify(options)
    assert result.passed and result.tensors_equal, result.difference
