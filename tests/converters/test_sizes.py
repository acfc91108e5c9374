"""Smaller sizes: what is sliced out of a folder is what the conversion of their masks writes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.convert import ConvertOptions, convert, make_plan, open_masked
from converters.sizes import masked_to
from sgate_serve.architecture.llama_families import QWEN3
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, GatesError, PlanError
from sgate_serve.gates import Gates
from sgate_serve.loaders.sized_folder import open_size
from sgate_serve.plan import PLAN_FILE, Target
from sgate_serve.plan.json_form import read_plan
from sgate_serve.plan.sizes import SIZES_FILE, kept, read_sizes
from sgate_serve.reports.inspection import Inspection
from sgate_serve.training.train_options import COUPLED, EXPERTS
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.small_models import small_model
from tests.families.zoo import VARIANTS, ZOO, Variant, build
from tests.ranked_gates import keeps_of, write_ranked_gates
from tests.small_llama import dense_llama, save
from tests.text_model import write_tokenizer

ONNX = ("hf", "onnx")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_sizes(root: Path, options: ConvertOptions) -> None:
    """Compare each size that is sliced out with the conversion of its own mask, all bytes of it."""
    convert(options)
    assert options.gates is not None
    gates = Gates.read(options.gates)
    sizes = read_sizes(options.out)
    assert [size.keep for size in sizes] == sorted(options.sizes, reverse=True)
    for size in sizes:
        own, expected = root / f"gates-{size.keep}", root / f"out-{size.keep}"
        gates.closed_to(size.step).write(own)
        plan = convert(replace(options, gates=own, out=expected, sizes=()))
        dense = open_masked(options.checkpoint, own).spec
        assert kept(plan, dense) == pytest.approx(size.keep, abs=0.005)
        found, wanted = contents(open_size(options.out, size.keep).folder), contents(expected)
        assert found.keys() == wanted.keys()
        assert [name for name in found if found[name] != wanted[name]] == []


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_size_is_the_conversion_of_its_mask(variant: Variant, tmp_path: Path) -> None:
    build(variant, 0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1)
    keeps = keeps_of(base.folder, gates, 0.8, 0.3)
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=keeps)
    check_sizes(tmp_path, options)
    # The oracle is the masked dense model in transformers.
    given = VerifyOptions(str(base.folder), str(options.out), gates, "torch", keep=keeps[0])
    result = verify(given)
    assert result.passed and result.tensors_equal and result.plan_equal, result.differences


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model") / "base"
    dense_llama(vocab_size=400, max_position_embeddings=512).save_pretrained(folder)
    write_tokenizer(folder)
    return Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("to", "precision"),
    [(ONNX, None), (ONNX, "fp16"), (ONNX, "int4"), (("hf",), "bf16")],
    ids=str,
)
def test_a_size_has_the_precision_and_the_graph_of_its_folder(
    to: tuple[str, ...], precision: str | None, base: Checkpoint, tmp_path: Path
) -> None:
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1, is_joint=True)
    keeps = keeps_of(base.folder, gates, 0.6)
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, to, precision, sizes=keeps)
    check_sizes(tmp_path, options)


def test_a_size_has_the_trained_weights_of_its_folder(base: Checkpoint, tmp_path: Path) -> None:
    down, rng = "model.layers.1.mlp.down_proj", np.random.default_rng(0)
    shape = base.tensors[f"{down}.weight"].shape
    deltas = {
        f"{down}.weight": rng.standard_normal(shape).astype(np.float32),
        f"{down}.bias": rng.standard_normal(shape[0]).astype(np.float32),
    }
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1, deltas=deltas)
    keeps = keeps_of(base.folder, gates, 0.6)
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=keeps)
    check_sizes(tmp_path, options)
    small = open_size(options.out, keeps[0])
    assert small.spec.extra_biases == {down}
    np.testing.assert_array_equal(small.read(f"{down}.bias"), deltas[f"{down}.bias"])


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss", "gemma4_text"])
@pytest.mark.parametrize("is_joint", [False, True])
def test_experts_close_whole(family: str, is_joint: bool, tmp_path: Path) -> None:
    variant = next(one for one in ZOO[family] if one.has_experts)
    build(variant, 0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1, EXPERTS, is_joint=is_joint)
    keeps = keeps_of(base.folder, gates, 0.7)
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=keeps)
    check_sizes(tmp_path, options)
    whole, small = (Checkpoint.open(options.out).spec, open_size(options.out, keeps[0]).spec)
    counts = [[len(layer.experts) for layer in spec.layers] for spec in (whole, small)]
    assert sum(counts[1]) < sum(counts[0])


def test_units_that_close_in_blocks_stay_aligned(base: Checkpoint, tmp_path: Path) -> None:
    wide = save(dense_llama(intermediate_size=64), tmp_path / "wide")
    gates = write_ranked_gates(wide, tmp_path / "gates", 0.1, gate_block=8)
    keeps = keeps_of(wide.folder, gates, 0.5)
    aligned = Target(align=8)
    options = ConvertOptions(str(wide.folder), tmp_path / "out", gates, target=aligned, sizes=keeps)
    check_sizes(tmp_path, options)
    assert all(not layer.mlp_units % 8 for layer in open_size(options.out, keeps[0]).spec.layers)


def gates_by_hand(base: Checkpoint, folder: Path, **order: Any) -> Path:
    """Write gates from their steps: 0 is closed, and -1 stays open."""
    steps = {key.replace("__", "."): np.asarray(each, np.int32) for key, each in order.items()}
    values = {key: (each != 0).astype(np.float32) for key, each in steps.items()}
    family = base.spec.family.name
    gates = Gates("by hand", family, COUPLED, base.fingerprint, values, order=steps)
    replace(gates, base_digest=base.digest).write(folder)
    return folder


def at(layer: int, kind: str) -> str:
    return f"model__layers__{layer}__{kind}"


def first(size: int, closed: int, count: int) -> list[int]:
    """Return steps: `closed` gates are, the next `count` close one after the other."""
    return [0] * closed + [*range(1, count + 1)] + [-1] * (size - closed - count)


UNITS = 30


def test_units_that_are_revived_for_a_size_are_zero_in_it(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    order = {at(0, "mlp_units"): first(UNITS, 0, 15)}
    order |= {at(1, "mlp_units"): [*range(16, 30), *[-1] * 16]}
    gates = gates_by_hand(base, tmp_path / "gates", **order)
    masked, target = open_masked(base.folder, gates), Target(align=16)
    keep = kept(make_plan(masked_to(masked, 29), target), masked.spec)
    options = ConvertOptions(
        str(base.folder), tmp_path / "out", gates, target=target, sizes=(keep,)
    )
    check_sizes(tmp_path, options)
    (size,), small = read_sizes(options.out), open_size(options.out, keep)
    assert size.plan.layers[0].revived("mlp_units") == {0}
    down = small.read("model.layers.0.mlp.down_proj.weight")
    assert down.shape[1] == 16 and not down[:, 0].any() and down[:, 1].all()


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        (
            # Eleven units are left in layer 0, and it gets back one that the folder has not.
            {
                at(0, "mlp_units"): first(UNITS, 14, 5),
                at(1, "mlp_units"): [*[0] * 14, *range(6, 10), *[-1] * 12],
            },
            {"target": Target(align=4)},
            r"layer 0 keeps mlp_units 0, which the largest size does not, to have a width",
        ),
        (
            {
                at(0, "mlp_units"): first(UNITS, 2, 20),
                at(0, "self_attn__q_proj__rows"): first(64, 3, 0),
            },
            {"index_price": 0},
            "layer 0 has index vectors; give coupled gates on a dense base",
        ),
        (
            {
                at(0, "mlp_units"): first(UNITS, 2, 20),
                at(0, "self_attn__q_proj__rows"): first(64, 32, 0),
            },
            {},
            "heads or key dimensions are merged; give coupled gates on a dense base",
        ),
        (
            {
                at(0, "kv_groups"): [1, -1],
                at(0, "self_attn__v_proj__columns"): first(48, 48, 0),
                at(1, "mlp_units"): first(UNITS, 2, 20),
            },
            {},
            "it has other folds than the largest size",
        ),
    ],
    ids=["align", "lowered", "merges", "folds"],
)
def test_what_is_no_slice_is_refused(
    order: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = save(dense_llama(attention_bias="folds" in message), tmp_path / "base")
    gates = gates_by_hand(base, tmp_path / "gates", **order)
    masked = open_masked(base.folder, gates)
    assert masked.gates is not None
    last = max(int(steps.max()) for steps in masked.gates.order.values())
    plan = make_plan(masked_to(masked, last), **options)
    given = ConvertOptions(
        str(base.folder), tmp_path / "out", gates, sizes=(kept(plan, masked.spec),), **options
    )
    with pytest.raises(PlanError, match=f"--sizes 0.*: {message}"):
        convert(given)
    assert not given.out.exists()


def test_a_stock_size_of_another_model_keeps_its_tokenizer(tmp_path: Path) -> None:
    """Where the base's model type chooses the class, a folder that is not stock states it."""
    order = {at(0, "mlp_units"): first(UNITS, 2, 0)}
    order |= {at(i, "mlp_units"): [2 * i - 1, 2 * i, *[-1] * 28] for i in (1, 2)}
    small_model(QWEN3, vocab_size=400).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    gates = gates_by_hand(base, tmp_path / "gates", **order)
    masked = open_masked(base.folder, gates)
    keep = kept(make_plan(masked_to(masked, 4)), masked.spec)
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=(keep,))
    check_sizes(tmp_path, options)
    assert open_size(options.out, keep).config["model_type"] == "qwen3"
    write_tokenizer(base.folder)
    (base.folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(PlanError, match=r"--sizes 0\.\d+: it is a stock model, and the largest"):
        convert(replace(options, out=tmp_path / "other"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0.99,), r"--sizes 0\.99: give fractions of the block weights to keep, below 0\.\d+; the"),
        ((-1.0,), "--sizes -1: give fractions of the block weights to keep, below"),
        ((60.0,), r"largest size keeps 0\.\d+; did you mean 0\.6\?"),
        ((0.7, 0.7001), r"--sizes 0\.7001,0\.7: both are the size that keeps 0\.\d+"),
        ((0.01,), r"--sizes 0\.01: the nearest that these gates reach is 0\.\d+; give that"),
    ],
)
def test_fractions_that_no_size_keeps_are_refused(
    sizes: tuple[float, ...], message: str, base: Checkpoint, tmp_path: Path
) -> None:
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1)
    with pytest.raises(PlanError, match=message):
        convert(ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=sizes))


def test_sizes_need_an_order_and_floats(base: Checkpoint, tmp_path: Path) -> None:
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1)
    (gates / "order.safetensors").unlink()
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=(0.5,))
    with pytest.raises(GatesError, match=r"gates\.safetensors: smaller sizes need gates that say"):
        convert(options)
    with pytest.raises(GatesError, match="no --gates: smaller sizes need gates that say which"):
        convert(replace(options, gates=None))
    with pytest.raises(PlanError, match="--sizes with --precision int8: int8 rows are scaled by"):
        convert(replace(options, precision="int8"))


@pytest.fixture
def sized(base: Checkpoint, tmp_path: Path) -> ConvertOptions:
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1)
    keeps = keeps_of(base.folder, gates, 0.3, 0.6)
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=keeps)
    convert(options)
    return options


def test_an_unknown_size_is_refused_with_those_there_are(sized: ConvertOptions) -> None:
    one, other = sized.sizes
    with pytest.raises(PlanError, match=rf"--keep 0\.2: .*out has the sizes {one:g}, {other:g};"):
        open_size(sized.out, 0.2)
    with pytest.raises(PlanError, match=r"--keep 0\.2: .*base has one size only; convert the base"):
        open_size(sized.checkpoint, 0.2)


def test_a_file_of_sizes_that_is_not_the_folders_is_refused(sized: ConvertOptions) -> None:
    path, (keep, _) = sized.out / SIZES_FILE, sized.sizes
    stored = json.loads(path.read_text())
    first, second = stored["sizes"]
    for changed, message in (
        ({"version": 2}, "is not a file of sizes of this release"),
        ({"sizes": [{"keep": 0.5}]}, "sizes must be a list of objects with keep, step and plan"),
        ({"sizes": [first | {"plan": second["plan"]}]}, rf"size {keep:g} keeps 0\.\d+ of base"),
        (
            {"sizes": [first | {"plan": first["plan"] | {"base_fingerprint": "x"}}]},
            "of base x…, and sgate_plan.json is of",
        ),
    ):
        path.write_text(json.dumps(stored | changed))
        for read in (lambda: open_size(sized.out, keep), lambda: Inspection.of(sized.out)):
            with pytest.raises(PlanError, match=message):
                read()


def test_what_changes_in_the_folder_changes_in_its_sizes(sized: ConvertOptions) -> None:
    keep = sized.sizes[0]
    before = open_size(sized.out, keep).folder
    assert open_size(sized.out, keep).folder == before
    settings = sized.out / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": 7}))
    after = open_size(sized.out, keep).folder
    assert after != before and (after / settings.name).read_bytes() == settings.read_bytes()
    # What is left of a cached folder is no size.
    (after / "config.json").unlink()
    assert open_size(sized.out, keep).folder == after


def test_slicing_needs_neither_torch_nor_transformers(sized: ConvertOptions) -> None:
    program = (
        "import sys; from sgate_serve.loaders.sized_folder import open_size; "
        "open_size(sys.argv[1], float(sys.argv[2])); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    words = [sys.executable, "-c", program, str(sized.out), str(sized.sizes[0])]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_config_that_transformers_refuses_is_refused(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, source: Path) -> None:
        units = json.loads((folder / "config.json").read_text())["intermediate_size"]
        raise CheckpointError(f"{source} has {units} units")

    gates = write_ranked_gates(base, tmp_path / "gates", 0.1)
    keeps = keeps_of(base.folder, gates, 0.6)
    monkeypatch.setattr("converters.sizes.check_with_transformers", refuse)
    options = ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=keeps)
    with pytest.raises(CheckpointError, match=r"--sizes 0\.\d+: config\.json has \d+ units"):
        convert(options)
    assert not options.out.exists()


def test_verification_notices_a_slice_that_is_not_its_masks(sized: ConvertOptions) -> None:
    keep = sized.sizes[1]
    given = VerifyOptions(sized.checkpoint, str(sized.out), sized.gates, "torch", keep=keep)
    small = open_size(sized.out, keep)
    assert read_plan(small.folder / PLAN_FILE) == read_sizes(sized.out)[1].plan
    info = small.tensors["model.layers.0.mlp.up_proj.weight"]
    data = bytearray(info.file.read_bytes())
    data[info.start + 3] ^= 0x40
    info.file.write_bytes(data)
    result = verify(given)
    assert not result.passed and "model.layers.0.mlp.up_proj.weight" in str(result.difference)
    with pytest.raises(GatesError, match="no --gates: smaller sizes need gates that say which"):
        verify(replace(given, gates=None))


def test_the_whole_folder_is_the_one_without_sizes(sized: ConvertOptions, tmp_path: Path) -> None:
    convert(replace(sized, out=tmp_path / "plain", sizes=()))
    found, plain = contents(sized.out), contents(tmp_path / "plain")
    assert found.pop(SIZES_FILE) and found == plain
    result = verify(VerifyOptions(sized.checkpoint, str(sized.out), sized.gates, "torch"))
    named = ", ".join(f"--keep {keep:g}" for keep in sized.sizes)
    assert result.passed
    assert f"smaller sizes, each of which is verified by its own {named}" in result.not_checked
