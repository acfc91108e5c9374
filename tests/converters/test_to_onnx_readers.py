"""The ONNX graphs of models that read texts: what is in them, and that they are well-formed."""

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from converters.to_onnx import write_onnx
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.checkpoint.reader import Checkpoint
from tests.families.zoo import ON_ENGINES, VARIANTS, ZOO, Variant, build

READERS = [variant for variant in ON_ENGINES if variant.task != "causal-lm"]
# RMS norms are of ONNX Runtime's own in the standard domain, which the checker does not know.
WITH_LAYER_NORMS = [variant for variant in VARIANTS if FAMILIES[variant.family].norm == "layer"]
PACKED = ["input_ids", "unpack_index", "pack_index"]


def written(root: Path, variant: Variant, **config: int) -> ir.Model:
    build(variant, seed=0, **config).save_pretrained(root / "model")
    write_onnx(Checkpoint.open(root / "model"), root / "onnx")
    return ir.load(root / "onnx" / "model.onnx")


@pytest.mark.parametrize("variant", WITH_LAYER_NORMS, ids=str)
def test_every_graph_is_well_formed(tmp_path: Path, variant: Variant) -> None:
    written(tmp_path, variant)
    onnx.checker.check_model(tmp_path / "onnx" / "model.onnx")


@pytest.mark.parametrize("variant", READERS, ids=str)
def test_graphs_that_read_have_no_cache(tmp_path: Path, variant: Variant) -> None:
    graph = written(tmp_path, variant).graph
    found = [value.name for value in graph.inputs] + [value.name for value in graph.outputs]
    assert not [name for name in found if str(name).startswith(("past", "present"))]


@pytest.mark.parametrize(
    ("family", "number", "inputs", "output"),
    [
        ("bert", 0, ["position_ids", "token_type_ids"], "last_hidden_state"),
        ("bert", 1, ["position_ids", "token_type_ids", "logit_index"], "logits"),
        ("distilbert", 0, ["position_ids"], "last_hidden_state"),
        ("modernbert", 0, [], "last_hidden_state"),
        ("modernbert", 1, ["logit_index"], "logits"),
        # It reads the mean of every row.
        ("modernbert", 2, [], "logits"),
    ],
)
def test_interface_of_an_encoder(
    tmp_path: Path, family: str, number: int, inputs: list[str], output: str
) -> None:
    graph = written(tmp_path, ZOO[family][number]).graph
    assert [v.name for v in graph.inputs] == [*PACKED, "query_seqlens", *inputs]
    assert [v.name for v in graph.outputs] == [output]
    rows = "n" if "logit_index" in inputs else "b"
    sizes = ["t", 48] if output == "last_hidden_state" else [rows, 3]
    assert [getattr(dim, "value", dim) for dim in graph.outputs[0].shape or ()] == sizes


def test_metadata_of_a_classifier(tmp_path: Path) -> None:
    metadata = written(tmp_path, ZOO["roberta"][1]).metadata_props
    model = Checkpoint.open(tmp_path / "model")
    weights = (tmp_path / "onnx" / "model.onnx.data").read_bytes()
    assert metadata == {
        "sgate.onnx_version": "3",
        "sgate.kind": "classify",
        "sgate.family": "roberta",
        "sgate.fingerprint": model.fingerprint,
        "sgate.digest": model.digest,
        "sgate.weights_digest": hashlib.sha256(weights).hexdigest(),
        # Of 64 rows of the table, those behind the padding id.
        "sgate.capacity": "62",
        "sgate.num_layers": "2",
        "sgate.precision": "fp32",
        "sgate.block": "0",
        "sgate.row_multiple": "1",
        "sgate.vocab_size": "97",
        "sgate.num_types": "2",
        "sgate.padding_id": "1",
        "sgate.logit_token": "first",
        "sgate.padding_position": "62",
    }


@pytest.mark.parametrize(("number", "expected"), [(1, "first"), (2, "every")])
def test_metadata_says_which_tokens_are_classified(
    number: int, expected: str, tmp_path: Path
) -> None:
    metadata = written(tmp_path, ZOO["modernbert"][number]).metadata_props
    assert metadata["sgate.logit_token"] == expected


def test_linears_that_read_the_same_share_a_matrix(tmp_path: Path) -> None:
    graph = written(tmp_path, ZOO["bert"][1]).graph
    found = [node.op_type for node in graph]
    # Of each layer qkv, output, up and down; then pooler and classifier.
    assert found.count("FusedMatMul") == 2 * 4 + 2
    assert found.count("MultiHeadAttention") == 2
    assert found.count("SkipLayerNormalization") == 2 * 2
