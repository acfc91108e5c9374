"""The config that conversion writes: its spec is the pruned one, and transformers can load it."""

import json
from pathlib import Path

import pytest
import torch

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan.placement import pruned_spec
from tests.converters.exactness import Example, write_base
from tests.converters.zeroing import Weights
from tests.families.zoo import VARIANTS, ZOO, Variant
from tests.families.zoo_configs import VOCABULARY
from tests.small_llama import random_tokens

WAYS = (("units", 3), ("whole_heads", 2), ("silent_writers", 7), ("columns", 5), ("stream", 1))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_written_config_has_the_pruned_spec(tmp_path: Path, variant: Variant) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    write_base(Example(variant, 0, WAYS, dtype=torch.float32), base)
    plan = convert(ConvertOptions(str(base), out))
    masked = open_masked(base, None)
    small = pruned_spec(plan, masked.spec)
    assert small != masked.spec
    assert Checkpoint.open(out).spec == small


def test_a_size_that_no_layer_keeps_is_left_to_the_config_class(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    variant = ZOO["llama"][0]
    heads = dict(variant.config) | {"num_key_value_heads": 4}
    variant = Variant("llama", "no-attention", variant.task, heads)

    def silence(weights: Weights) -> None:
        for name, parameter in weights.model.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.data[:] = 0

    write_base(Example(variant, dtype=torch.float32, change=silence), base)
    path = base / "config.json"
    config = json.loads(path.read_text())
    del config["num_key_value_heads"]
    path.write_text(json.dumps(config))
    convert(ConvertOptions(str(base), out))
    written = json.loads((out / "config.json").read_text())
    assert written["num_attention_heads"] == 4 and "num_key_value_heads" not in written
    tokens = random_tokens(8, vocab_size=VOCABULARY)
    assert TorchModel.converted(out).logits(tokens).shape == (8, VOCABULARY)
