"""Where vLLM's time goes, in its stock models and in the plugin's: hooks find every part."""

from pathlib import Path

import pytest
import torch

from sgate_serve.bench.comparison import DENSE, PRUNED
from sgate_serve.bench.explain.attribution import attribute
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.work import (
    ATTENDING,
    EMBEDDING,
    HEAD,
    INDEX,
    NORMS,
    PROJECTIONS,
    SAMPLING,
    UNITS,
)
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO
from tests.small_llama import dense_llama, save

pytestmark = pytest.mark.vllm


def test_both_models_have_all_kinds_of_work(tmp_path: Path) -> None:
    pruned = converted(ZOO["llama"][1], tmp_path, skip=0, index_price=0)["out"]
    models = {
        # vLLM's own attention wants heads of at least 32.
        DENSE: save(dense_llama(head_dim=32), tmp_path / "dense"),
        PRUNED: Checkpoint.open(pruned),
    }
    workload = Workload(decode_steps=2, context_tokens=4, prefill_tokens=8, batches=(2,))
    found = attribute(models, "vllm", workload)
    assert torch.get_num_threads() == 1
    for phase in ("decode_batch_2", "prefill"):
        for name in models:
            one = found[phase][name]
            inside = {PROJECTIONS, ATTENDING, UNITS, NORMS, EMBEDDING, HEAD, SAMPLING}
            assert inside <= one.kinds.keys(), (phase, name)
            assert sum(one.kinds.values()) == pytest.approx(one.seconds)
            assert all({PROJECTIONS, ATTENDING, UNITS} <= layer.keys() for layer in one.layers[1:])
        assert INDEX in found[phase][PRUNED].kinds and INDEX not in found[phase][DENSE].kinds
