"""Every field of every family's config, unusual once and left out once, against transformers.

Each is followed, refused by name, or without effect; the judge is transformers' own model.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.architecture.config_fields import CONFIG_CLASSES
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import CheckpointError
from sgate_serve.models.config_check import check_reading
from tests.families.config_judge import (
    BASES,
    TOKENS,
    Config,
    OurReading,
    Outputs,
    config_of,
    theirs,
    write_config,
)
from tests.families.config_values import (
    FOLLOWED,
    LINEAR,
    LONGROPE,
    OF_HEADS,
    OF_LABELS,
    REFUSED,
    UNUSUAL,
    WITHOUT_EFFECT,
    followed_in,
    on_by_default,
    refused_in,
    unusual,
)

Judge = Callable[[Config], Outputs]
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OWN_FIELDS = [(name, key) for name, family in FAMILIES.items() for key in family.fields]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return OurReading(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """The outputs of transformers' model for a config, computed once for each config."""
    folder, known = tmp_path_factory.mktemp("theirs"), dict[str, Outputs]()

    def judge(config: Config) -> Outputs:
        key = json.dumps(config, sort_keys=True)
        if key not in known:
            known[key] = theirs(config, task_of(config), folder)
        return known[key]

    return judge


@pytest.fixture(scope="module", autouse=True)
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def task_of(config: Config) -> str:
    return ModelSpec.from_config(config, "config.json").task


def agree(found: Outputs, wanted: Outputs) -> bool:
    scale = float(np.abs(wanted).max())
    return found.shape == wanted.shape and float(np.abs(found - wanted).max()) < 2e-5 * scale


def check_agree(found: Outputs, wanted: Outputs) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=2e-5 * float(np.abs(wanted).max()), rtol=0)


def changed(family: str, key: str) -> Config:
    if key == "architectures":
        entry = FAMILIES[family]
        return config_of(family, architectures=[entry.tasks[entry.default_task].model_class])
    return config_of(family, **{key: unusual(family, key)})


def test_every_field_has_an_unusual_value() -> None:
    assert not {key for _, key in OWN_FIELDS} - set(UNUSUAL)
    assert len(UNUSUAL) == len(FOLLOWED) + len(REFUSED) + len(WITHOUT_EFFECT)
    used = [followed_in(name) for name in FAMILIES] + [refused_in(name) for name in FAMILIES]
    assert set().union(*used, OF_LABELS, OF_HEADS) == {*FOLLOWED, *REFUSED}


@pytest.mark.parametrize(("family", "key"), OWN_FIELDS)
def test_an_unusual_value_is_followed_refused_or_without_effect(
    family: str, key: str, ours: Judge, expected: Judge
) -> None:
    config = changed(family, key)
    if key in refused_in(family):
        with pytest.raises(CheckpointError, match=f"config.json: .*{key}"):
            ours(config)
        return
    plain, found = expected(config_of(family)), expected(config)
    check_agree(ours(config), found)
    assert agree(found, plain) != (key in followed_in(family))


CLASSIFIERS = [name for name, family in FAMILIES.items() if CLASSIFICATION in family.tasks]


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_of_other_families_are_ignored_as_in_transformers(
    family: str, ours: Judge, expected: Judge
) -> None:
    plain = expected(config_of(family))
    for key in sorted(set(UNUSUAL) - set(FAMILIES[family].fields)):
        config = changed(family, key)
        if key in refused_in(family):
            with pytest.raises(CheckpointError, match=f"config.json: .*{key}"):
                ours(config)
            continue
        check_agree(ours(config), plain)
        assert agree(expected(config), plain), key


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_padding_id_inside_a_text_is_read_as_in_transformers(
    family: str, ours: Judge, expected: Judge
) -> None:
    for padding in (int(TOKENS[4]), int(TOKENS[-1])):
        config = config_of(family, CLASSIFICATION, pad_token_id=padding)
        check_agree(ours(config), expected(config))


@pytest.mark.parametrize(("family", "key"), [one for one in OWN_FIELDS if one[1] in OF_HEADS])
def test_fields_of_a_head_are_followed(family: str, key: str, ours: Judge, expected: Judge) -> None:
    plain = expected(config_of(family, CLASSIFICATION))
    config = config_of(family, CLASSIFICATION, **{key: UNUSUAL[key]})
    found = expected(config)
    check_agree(ours(config), found)
    assert not agree(found, plain)


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("labels", [{}, {"num_labels": 4}, {"id2label": {"1": "yes", "0": "no"}}])
def test_labels_are_counted_as_in_transformers(
    family: str, labels: Config, ours: Judge, expected: Judge
) -> None:
    config = config_of(family, CLASSIFICATION)
    config = {key: value for key, value in config.items() if key != "num_labels"} | labels
    found = expected(config)
    assert found.shape == (1, labels.get("num_labels", 2))
    check_agree(ours(config), found)


@pytest.mark.parametrize(("family", "key"), OWN_FIELDS)
def test_a_field_left_out_has_the_default_of_its_class(
    family: str, key: str, tmp_path: Path
) -> None:
    entry = FAMILIES[family]
    full = {name: field.default for name, field in CONFIG_CLASSES[entry.config_class].items()}
    config = {**full, "model_type": family, **BASES[family]}
    # A width that every class's default number of heads divides.
    own = {name: entry.keys.get(name, name) for name in ("hidden_size", "num_attention_heads")}
    if key in (own["num_attention_heads"], "num_key_value_heads"):
        config |= {own["hidden_size"]: 384, own["num_attention_heads"]: 32}
    if key in ("linear_num_key_heads", "full_attention_interval"):
        # The default number of keys divides these values, and one of these layers attends.
        config |= {"linear_num_value_heads": 32, "num_hidden_layers": 4}
    config = {name: value for name, value in config.items() if name != key}
    if key == "pad_token_id" and full[key] is not None and full[key] >= config["vocab_size"]:
        with pytest.raises(CheckpointError, match=f"{full[key]}, the default of its class,"):
            ModelSpec.from_config(config, "config.json")
        config["vocab_size"] = full["vocab_size"]
    write_config(config, tmp_path)
    if key in OF_EXPERTS and full.get(key, 0) is None:
        with pytest.raises(CheckpointError, match=f"{key} must be a whole number, found None"):
            check_reading(tmp_path)
        return
    with refusal(family, {key}):
        check_reading(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_of_nothing_but_its_family_is_that_of_the_class(
    family: str, tmp_path: Path
) -> None:
    write_config({"model_type": family}, tmp_path)
    with refusal(family, set(FAMILIES[family].fields)):
        check_reading(tmp_path)


def refusal(family: str, left_out: set[str]) -> AbstractContextManager[Any]:
    """Expect a refusal if fields are left out that a config of the family must switch off."""
    if not (keys := on_by_default(family) & left_out):
        return nullcontext()
    return pytest.raises(CheckpointError, match=f"{keys.pop()} .* is not supported for family")


# A class that need not have experts has no number of them.
OF_EXPERTS = {"num_experts", "top_k_experts", "moe_intermediate_size"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
PLAIN = {"rope_type": "default", "rope_theta": 5.0}
TURNED = {"rope_type": "proportional", "rope_theta": 50.0, "factor": 2.0}
# The second layer reads the keys of the first.
SHARED = {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2}
# Spellings that meet in one config; the old one wins where transformers lets it.
MEETING: list[tuple[str, Config]] = [
    ("llama", {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 3.0}}),
    ("llama", {"rope_scaling": {"type": "default", **LINEAR}}),
    ("llama", {"rope_scaling": {}, "rope_parameters": LINEAR}),
    ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 8}),
    ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8}}),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("llama", {"sliding_window": 3, "layer_types": ["full_attention"] * 2}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"layer_types": None, "max_window_layers": 2}),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}),
    ("qwen3", {"rope_theta": 3.0, "rope_parameters": {"rope_theta": 50.0}}),
    # 3 of 8 dimensions, and so 4.
    ("gpt_neox", {"rotary_pct": 0.4}),
    ("smollm3", {"no_rope_layers": [0, 1], "layer_types": ["sliding_attention"] * 2}),
    ("smollm3", {"no_rope_layers": [0, 0], "use_sliding_window": False}),
    ("smollm3", {"no_rope_layers": None, "sliding_window": None, "no_rope_layer_interval": 1}),
    ("phi3", {"rope_scaling": {**LONGROPE, "type": "longrope", "factor": 3.0}}),
    ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16}),
    ("phi3", {"rope_scaling": {**LONGROPE, "rope_type": "yarn"}}),
    (
        "phi3",
        {
            "rope_scaling": {**LONGROPE, "rope_type": "su", "original_max_position_embeddings": 8},
            "original_max_position_embeddings": 16,
        },
    ),
    ("gemma2", {"sliding_window_pattern": 1, "attn_logit_softcapping": None}),
    ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    ("gemma3_text", {"rope_scaling": LINEAR, "rope_parameters": {"full_attention": LLAMA3}}),
    ("gemma3_text", {"rope_parameters": {**LINEAR, "rope_theta": 3.0}}),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": LINEAR, "full_attention": None}}),
    ("gemma3_text", {"original_max_position_embeddings": 8, "rope_scaling": LLAMA3}),
    ("gemma4_text", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma4_text", {"layer_types": None, "num_hidden_layers": 7}),
    ("gemma4_text", {"per_layer_config": {"1": {"head_dim": 24}}}),
    ("gemma4_text", {"per_layer_config": {}, "head_dim": 12}),
    ("gemma4_text", {"num_global_key_value_heads": None, "use_bidirectional_attention": "vision"}),
    ("gemma4_text", {"attention_k_eq_v": False, "num_global_key_value_heads": 4}),
    ("gemma4_text", SHARED | {"enable_moe_block": False}),
    ("gemma4_text", SHARED | {"use_double_wide_mlp": True}),
    ("gemma4_text", {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 40}),
    ("gemma4_text", {"rope_parameters": {"sliding_attention": PLAIN, "full_attention": TURNED}}),
    (
        "gemma4_text",
        {"rope_parameters": {"sliding_attention": PLAIN, "full_attention": TURNED}}
        | {"partial_rotary_factor": 0.5, "rope_theta": 3.0},
    ),
    ("olmo2", {"rope_scaling": YARN, "rope_theta": 200.0}),
    ("olmo2", {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 9}, "head_dim": 16}),
    ("olmo3", {"rope_scaling": YARN, "rope_theta": 7.0, "sliding_window": 3}),
    ("olmo3", {"layer_types": None, "rope_parameters": {"sliding_attention": YARN}}),
    ("gpt2", {"n_inner": None, "scale_attn_by_inverse_layer_idx": True, "hidden_size": 32}),
    ("gpt_neox", {"rope_theta": 7.0, "partial_rotary_factor": 0.5, "rotary_pct": 0.25}),
    ("gpt_neox", {"rope_parameters": {"rope_theta": 3.0, "partial_rotary_factor": 0.5}}),
    ("gpt_neox", {"rope_scaling": LINEAR, "rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("gpt_neox", {"rope_scaling": YARN, "rotary_pct": 0.5, "original_max_position_embeddings": 8}),
    ("gpt_neox", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 8}),
    *[
        (family, {"rope_parameters": {**TURNED, "partial_rotary_factor": 0.5}})
        for family in ("gpt_neox", "glm4_moe", "qwen3_5_text", "qwen3_next")
    ],
    ("bert", {"head_dim": 4, "pad_token_id": -1}),
    ("roberta", {"pad_token_id": 2}),
    ("modernbert", {"sliding_window": 2, "local_attention": 12}),
    ("modernbert", {"local_attention": 1, "global_attn_every_n_layers": 9}),
    ("modernbert", {"local_attention": 3, "layer_types": ["sliding_attention"] * 2}),
    ("modernbert", {"layer_types": None, "rope_theta": 3.0}),
    ("modernbert", {"rope_parameters": {"sliding_attention": LINEAR}, "global_rope_theta": 9.0}),
    ("modernbert", {"rope_parameters": {"full_attention": YARN}, "partial_rotary_factor": 1.0}),
]


@pytest.mark.parametrize(("family", "fields"), MEETING)
def test_fields_that_meet_are_read_as_in_transformers(
    family: str, fields: Config, ours: Judge, expected: Judge
) -> None:
    config = config_of(family, **fields)
    check_agree(ours(config), expected(config))


# Configs that transformers cannot use, or uses otherwise than its forward says.
CONTRADICTING: list[tuple[str, Config, str]] = [
    ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, found nu"),
    ("llama", {"rope_scaling": {"factor": 2.0, "rope_type": "su"}}, "rope_type 'su' is not one"),
    ("llama", {"rope_scaling": {"rope_type": None}}, "rope_type None is not one that transformers"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' needs factor"),
    ("llama", {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR}, "rotates whole heads; remo"),
    ("llama", {"hidden_size": 34, "head_dim": 8}, "hidden_size 34 is not a multiple of num_att"),
    ("llama", {"num_labels": 3, "id2label": {"0": "a"}}, "num_labels is 3 and id2label names 1"),
    ("llama", {"id2label": {"a": "b"}, "num_labels": 1}, "id2label has the key 'a'"),
    ("llama", {"num_attention_heads": 0}, "a stock model has attention heads and MLP units"),
    ("llama", {"pad_token_id": 31}, "pad_token_id 31 is not an id from -31 to 30"),
    (
        "llama",
        {"num_labels": 1, "problem_type": "single_label_classification"},
        'needs more than one label; transformers refuses it: write "regression"',
    ),
    ("mistral", {"layer_types": None}, "reads model_type mistral with layer_types as ministral"),
    ("mistral", {"num_key_value_heads": None}, "num_key_value_heads must be .*, found null"),
    (
        "qwen2",
        {"use_sliding_window": False, "layer_types": UNUSUAL["layer_types"]},
        "layer 0 has s",
    ),
    ("qwen2", {"rope_parameters": {"full_attention": LINEAR}}, "has settings for full_attention"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types names 1 layers of 2"),
    ("qwen2", {"layer_types": ["full_attention", "conv"]}, "layer_types names 'conv'"),
    ("smollm3", {"no_rope_layers": [1, 0, 1]}, "no_rope_layers has 3 entries for 2 layers"),
    ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers must be a list of 0s and 1s"),
    ("phi3", {"layer_types": UNUSUAL["layer_types"]}, "layers of family phi3 are all alike"),
    ("phi3", {"rope_scaling": {**LONGROPE, "rope_type": "su"}}, "needs original_max_position_emb"),
    ("phi3", {"rope_scaling": LINEAR}, r"rope_type 'linear' is not .* \(longrope, default\)"),
    ("phi3", {"rope_scaling": {**LONGROPE, "long_factor": [1.0]}}, "long_factor has 1 values for"),
    (
        "gemma3_text",
        {"rope_scaling": LINEAR, "rope_parameters": LINEAR},
        "transformers refuses bot",
    ),
    (
        "gemma4_text",
        {"rope_parameters": {"full_attention": PLAIN}},
        "rope_parameters lacks settings for sliding_attention",
    ),
    (
        "gemma4_text",
        {"rope_parameters": {"full_attention": {}, "sliding_attention": PLAIN}},
        "rope_type 'default' needs rope_theta",
    ),
    (
        "gemma4_text",
        {"rope_parameters": {"full_attention": {**YARN, "rope_theta": 5.0}}},
        "lacks settings for sliding_attention",
    ),
    ("gemma4_text", {"use_bidirectional_attention": "all"}, 'must be "vision", which a model of'),
    ("gemma4_text", {"global_head_dim": None}, "global_head_dim must be .*, found null"),
    (
        "gemma4_text",
        {"num_kv_shared_layers": 2},
        "num_kv_shared_layers 2 of 2 layers: layer 0 reads the keys of an earlier layer, and none",
    ),
    ("gemma4_text", {"top_k_experts": 9}, "top_k_experts 9 of 8 experts; a token uses at least"),
    ("gemma4_text", {"head_dim": 0}, "head_dim 0 must be even and positive"),
    ("gemma4_text", {"num_key_value_heads": 3}, "has 4 query heads, not a multiple of its 3 KV"),
    ("olmo3", {"rope_scaling": {**YARN, "truncate": False}}, "rope_parameters: truncate false is"),
    ("bert", {"is_causal": True}, "is_causal True is not supported for family bert"),
    ("gpt_neox", {"head_dim": 6}, "head_dim is 6, and heads of family gpt_neox are hidden size"),
    ("gpt_neox", {"rotary_pct": None}, "rotary_pct must be .*, found null"),
    ("gpt2", {"hidden_size": 48}, "transformers reads hidden_size as n_embd; here they are 48 and"),
    ("roberta", {"pad_token_id": -1}, "pad_token_id -1 is not an id from 0 to 30"),
    ("roberta", {"pad_token_id": None}, "pad_token_id is null; positions start after it"),
    ("modernbert", {"rope_scaling": LINEAR}, "rope_scaling .* is not supported for family moder"),
    ("modernbert", {"rope_parameters": LINEAR}, "must be an object of rotary settings for full_"),
    ("modernbert", {"local_attention": None}, "local_attention must be .*, found null"),
    ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling must be one of cls, mean"),
]


@pytest.mark.parametrize(("family", "fields", "message"), CONTRADICTING)
def test_fields_that_contradict_each_other_are_refused_by_name(
    family: str, fields: Config, message: str, ours: Judge
) -> None:
    with pytest.raises(CheckpointError, match=f"^config.json: .*{message}"):
        ours(config_of(family, **fields))


def test_what_a_class_fixes_it_does_not_read() -> None:
    both = {
        (name, key)
        for name, family in FAMILIES.items()
        for key in family.fixed
        if family.keys.get(key, key) in family.fields
    }
    # Accepted, and computed otherwise.
    assert both == {("gpt_oss", "hidden_act")}
