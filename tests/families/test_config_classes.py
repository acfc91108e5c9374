"""Our table of config fields against the classes of the installed transformers."""

import dataclasses
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN

from sgate_serve.architecture.config_fields import CONFIG_CLASSES, EXTRA_KEYS
from sgate_serve.architecture.config_kinds import ACTIVATION_NAMES
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.models import AUTO_CLASSES
from tests.families.config_judge import TOKENS, config_of
from tests.families.config_values import UNUSUAL

# Values of every type that JSON has, good and bad ones for each field among them.
PROBES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 0.5, 1.0, -0.5, 2.5),
    *("", "x", "silu", "float32", "regression"),
    *([], ["x"], [1], [0.5], {}, {"0": "a"}, {"0": 1}, {"0": None}, {"a": 1}, {"x": ["y"]}),
]


@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_fields_and_defaults_are_those_of_the_class(name: str) -> None:
    made: Any = getattr(transformers, name)
    found = {field.name: field.default for field in dataclasses.fields(made)}
    assert {key: field.default for key, field in CONFIG_CLASSES[name].items()} == found
    for key, default in found.items():
        assert type(CONFIG_CLASSES[name][key].default) is type(default), key
    assert not set(EXTRA_KEYS[name]) & set(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_its_class_and_its_aliases(family: str) -> None:
    entry, made = FAMILIES[family], CONFIG_MAPPING[family]
    assert made.__name__ == entry.config_class
    assert entry.aliases == made.attribute_map


@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_a_field_accepts_its_default_and_nothing_that_its_class_refuses(name: str) -> None:
    made: Any = getattr(transformers, name)
    for key, field in CONFIG_CLASSES[name].items():
        for value in (field.default, *PROBES):
            accepts = field.is_nullable if value is None else field.kind.accepts(value)
            assert accepts or value is not field.default
            for validate in made.__validators__[key] if accepts else ():
                validate(value)


def test_activations_are_those_of_transformers_without_weights() -> None:
    without = {name for name in ACT2FN if not list(ACT2FN[name].parameters())}
    assert without == ACTIVATION_NAMES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_transformers_reads_is_a_field_or_has_an_unusual_value(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a new release reads, such as one that changes masks, fails here."""
    read: set[str] = set()
    original = PreTrainedConfig.__getattribute__

    def traced(self: PreTrainedConfig, key: str) -> Any:
        caller: FrameType = sys._getframe(1)
        if Path(caller.f_code.co_filename).name not in ("configuration_utils.py", "dataclasses.py"):
            read.add(key)
        return original(self, key)

    for task in FAMILIES[family].tasks:
        config = CONFIG_MAPPING[family].from_dict(config_of(family, task))
        with monkeypatch.context() as patch:
            patch.setattr(PreTrainedConfig, "__getattribute__", traced)
            model = AUTO_CLASSES[task].from_config(config).eval()
            ids = torch.from_numpy(TOKENS)[None]
            model(ids, attention_mask=torch.ones_like(ids))
    made = CONFIG_MAPPING[family]
    known = {*FAMILIES[family].fields, *FAMILIES[family].aliases, *UNUSUAL}
    strangers = {key for key in read if not hasattr(made, key) and key not in known}
    assert {key for key in strangers if not key.startswith("__")} == set()
