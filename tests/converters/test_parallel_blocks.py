"""Blocks that read the same stream: where their constants go, and where they may not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sgate_serve.architecture.family import ATTENTION, DOWN, MLP, OUTPUT
from sgate_serve.plan import BlockFold
from tests.converters.exactness import Example, check
from tests.converters.zeroing import Weights
from tests.families.float64 import logits64
from tests.families.zoo import ZOO, Variant, build, token_batch

NEOX = ZOO["gpt_neox"][0]
LAYERS = "gpt_neox.layers"
OF_MLP, OF_ATTENTION = "mlp.dense_4h_to_h.bias", "attention.dense.bias"


def silenced(*places: tuple[int, str]) -> Callable[[Weights], None]:
    """Return a change that leaves a block's last linear its bias alone."""

    def change(weights: Weights) -> None:
        for layer, role in places:
            weights.matrix(layer, role)[:] = 0

    return change


def variant(**fields: bool) -> Variant:
    return Variant(NEOX.family, NEOX.name, NEOX.task, {**NEOX.config, **fields})


@pytest.mark.parametrize(
    ("is_parallel", "receiver", "is_exact"),
    [
        (True, f"1.{OF_MLP}", True),
        (True, f"0.{OF_MLP}", False),
        (False, f"1.{OF_MLP}", False),
        (False, f"0.{OF_MLP}", True),
    ],
)
@torch.no_grad()
def test_what_reads_the_stream_in_between_decides_where_a_constant_may_go(
    is_parallel: bool, receiver: str, is_exact: bool
) -> None:
    """transformers alone: the MLP beside a constant attention reads the stream without it."""
    model = build(NEOX, seed=0, use_parallel_residual=is_parallel)
    tensors, ids = dict(model.named_parameters()), token_batch(NEOX, seed=0)
    tensors[f"{LAYERS}.1.attention.dense.weight"].zero_()
    expected, constant = logits64(model, ids), tensors[f"{LAYERS}.1.{OF_ATTENTION}"]
    tensors[f"{LAYERS}.{receiver}"] += constant
    constant.zero_()
    difference = np.abs(logits64(model, ids) - expected).max()
    assert difference < 1e-5 if is_exact else difference > 1e-2


@pytest.mark.parametrize(
    ("places", "is_parallel", "targets"),
    [
        ([(1, OUTPUT)], True, [f"{LAYERS}.1.{OF_MLP}"]),
        ([(1, OUTPUT)], False, [f"{LAYERS}.0.{OF_MLP}"]),
        ([(1, DOWN)], True, [f"{LAYERS}.1.{OF_ATTENTION}"]),
        ([(1, DOWN)], False, [f"{LAYERS}.1.{OF_ATTENTION}"]),
        ([(1, OUTPUT), (1, DOWN)], True, [f"{LAYERS}.0.{OF_MLP}"] * 2),
        ([(0, OUTPUT)], True, [f"{LAYERS}.0.{OF_MLP}"]),
        ([(0, OUTPUT)], False, ["gpt_neox.embed_in.weight"]),
        ([(0, OUTPUT), (0, DOWN)], True, ["gpt_neox.embed_in.weight"] * 2),
    ],
)
def test_a_constant_goes_to_the_other_block_or_past_a_whole_layer(
    places: list[tuple[int, str]], is_parallel: bool, targets: list[str], tmp_path: Path
) -> None:
    example = Example(variant(use_parallel_residual=is_parallel), change=silenced(*places))
    folds = check(example, tmp_path).folds
    blocks = [(layer, ATTENTION if role == OUTPUT else MLP) for layer, role in places]
    expected = [BlockFold(*place, target) for place, target in zip(blocks, targets, strict=True)]
    assert list(folds) == expected


def test_a_constant_that_a_tied_embedding_cannot_take_has_the_other_block(tmp_path: Path) -> None:
    tied = Example(variant(tie_word_embeddings=True), change=silenced((0, OUTPUT)))
    (fold,) = check(tied, tmp_path / "one").folds
    assert fold == BlockFold(0, ATTENTION, f"{LAYERS}.0.{OF_MLP}")
    both = Example(tied.variant, change=silenced((0, OUTPUT), (0, DOWN)))
    plan = check(both, tmp_path / "both")
    assert plan.folds == ()
    assert len(plan.layers[0].heads) == len(plan.layers[0].mlp_units) == 1


def test_a_model_without_any_block_converts_again(tmp_path: Path) -> None:
    every = [(layer, role) for layer in range(3) for role in (OUTPUT, DOWN)]
    plan = check(Example(NEOX, change=silenced(*every)), tmp_path)
    assert {layer.skipped_blocks for layer in plan.layers} == {(ATTENTION, MLP)}
