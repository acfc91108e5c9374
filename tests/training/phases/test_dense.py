"""The base that training writes is the one that it was given, apart from what it learned."""

from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.distilbert.modeling_distilbert import DistilBertModel
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.modernbert.modeling_modernbert import ModernBertModel

from sgate_serve.training.phases.dense import restore_config
from tests.families.zoo_configs import DECODER, DISTILBERT, MODERNBERT


@pytest.mark.parametrize(
    ("family", "sizes", "made"),
    [
        ("llama", DECODER, LlamaModel),
        ("distilbert", DISTILBERT, DistilBertModel),
        ("modernbert", MODERNBERT, ModernBertModel),
    ],
)
@pytest.mark.parametrize("stored", [{}, {"use_cache": True}, {"use_cache": False}])
def test_the_cache_is_as_the_base_has_it(
    family: str, sizes: dict[str, Any], made: Any, stored: dict[str, bool]
) -> None:
    model = made(AutoConfig.for_model(family, **sizes, **stored))
    before = model.config.to_dict()
    model.config.use_cache = False
    restore_config(model, stored)
    assert model.config.to_dict() == before
