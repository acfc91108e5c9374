"""`--precision auto`: what it chooses for a model on a machine, and that only that is stored."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import OnnxOptions, PoolingOptions
from sgate_serve.errors import PlanError
from sgate_serve.loaders.logits import load_logits_model
from sgate_serve.loaders.serving import load_pooling_engine, load_slot_engine
from sgate_serve.onnx_format.auto_precision import Choice, Machine, choose
from sgate_serve.onnx_format.names import GRAPH_FILE, META_PRECISION, ONNX_DIR, stored_text
from tests.converters.test_sizes import contents
from tests.families.zoo import ZOO, build
from tests.ranked_gates import keeps_of, write_ranked_gates
from tests.small_llama import dense_llama, save

GIB = 2**30
AMX, VNNI = ("amx_bf16", "amx_int8", "avx512_vnni"), ("avx2", "avx512_vnni")
SIZES = OnnxOptions(slots=2, max_model_len=24, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(dense_llama(), tmp_path_factory.mktemp("model") / "base")


def on_machine(monkeypatch: pytest.MonkeyPatch, *flags: str, memory: int = 64 * GIB) -> None:
    machine = Machine(frozenset(flags), memory)
    monkeypatch.setattr(Machine, "here", lambda: machine)
    # The form of int8 follows the CPU too.
    monkeypatch.setattr("converters.convert.cpu_flags", lambda: flags)
    monkeypatch.setattr("sgate_serve.loaders.graph_cache.cpu_flags", lambda: flags)


@pytest.mark.parametrize(
    ("flags", "precision", "reason"),
    [
        (AMX, "int8", "has AMX, "),
        # A virtual machine may show AMX for bf16 alone.
        (("amx_bf16", "amx_tile", *VNNI), "int4", "AVX-512 VNNI without AMX"),
        (VNNI, "int4", "AVX-512 VNNI without AMX"),
        (("avx2", "avx_vnni"), "int4", "has AVX-VNNI; nothing was measured"),
        (("avx2",), "int4", "not known to have VNNI or AMX; nothing was measured"),
        (("asimd", "i8mm"), "int4", "not known to have VNNI or AMX"),
        ((), "int4", "not known to have VNNI or AMX"),
    ],
)
def test_instructions_decide(
    model: Checkpoint, flags: tuple[str, ...], precision: str, reason: str
) -> None:
    choice = choose(model.spec, Machine(frozenset(flags), 64 * GIB))
    assert choice.precision == precision and reason in choice.reason


def test_int4_where_int8_takes_more_than_half_of_the_memory(model: Checkpoint) -> None:
    spec, amx = model.spec, frozenset(AMX)
    size = spec.num_parameters * (1 + 4 / 64)
    assert choose(spec, Machine(amx, round(2.01 * size))).precision == "int8"
    too_small = Machine(amx, round(1.99 * size))
    choice = choose(spec, too_small)
    assert choice.precision == "int4" and "more than 50% of the" in choice.reason
    # Also if the folder is int8.
    assert choose(spec, too_small, is_int8=True).precision == "int4"


def test_what_is_possible_decides_before_the_machine(model: Checkpoint, tmp_path: Path) -> None:
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "bert")
    encoder = Checkpoint.open(tmp_path / "bert").spec
    vnni, amx = Machine(frozenset(VNNI), 1), Machine(frozenset(AMX), 64 * GIB)
    assert choose(encoder, vnni) == Choice("int8", "graphs of encoders are not made in int4")
    assert choose(model.spec, amx, without_int8="so it is") == Choice("int4", "so it is")
    stored = choose(model.spec, replace(vnni, memory_bytes=64 * GIB), is_int8=True)
    assert stored == Choice("int8", "the folder's weights are int8")


@pytest.mark.parametrize(("flags", "precision"), [(AMX, "int8"), (VNNI, "int4")])
def test_a_conversion_is_that_in_the_chosen_precision(
    model: Checkpoint,
    flags: tuple[str, ...],
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All bytes are the same, so no file says `auto`."""
    on_machine(monkeypatch, *flags)
    source = str(model.folder)
    with caplog.at_level(logging.INFO):
        convert(ConvertOptions(source, tmp_path / "auto", to=("hf", "onnx"), precision="auto"))
    (line,) = (text for text in caplog.messages if text.startswith("--precision auto: "))
    assert line.startswith(f"--precision auto: {precision}, as this CPU has ")
    convert(ConvertOptions(source, tmp_path / "given", to=("hf", "onnx"), precision=precision))
    assert contents(tmp_path / "auto") == contents(tmp_path / "given")
    graph = (tmp_path / "auto" / ONNX_DIR / GRAPH_FILE).read_bytes()
    assert stored_text(graph, META_PRECISION) == precision
    assert Checkpoint.open(tmp_path / "auto").is_int8 == (precision == "int8")


def test_conversions_that_int8_cannot_be_for_are_int4(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, *AMX)
    gates = write_ranked_gates(model, tmp_path / "gates", 0.1)
    auto = ConvertOptions("", tmp_path / "", to=("hf", "onnx"), precision="auto")
    for family in ("gpt2", "gpt_oss"):
        build(ZOO[family][0], seed=0).save_pretrained(tmp_path / family)
        convert(replace(auto, checkpoint=str(tmp_path / family), out=tmp_path / f"small-{family}"))
    keeps = keeps_of(model.folder, gates, 0.8)
    sized = replace(auto, checkpoint=str(model.folder), gates=gates, sizes=keeps)
    convert(replace(sized, out=tmp_path / "sized"))
    for name in ("small-gpt2", "small-gpt_oss", "sized"):
        graph = (tmp_path / name / ONNX_DIR / GRAPH_FILE).read_bytes()
        assert stored_text(graph, META_PRECISION) == "int4"


def test_conversions_that_auto_cannot_be_for_are_refused(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = tmp_path / "out", str(model.folder)
    message = r"--precision auto chooses the precision of the ONNX graph; add --to hf,onnx"
    for formats in (("hf",), ("hf", "gguf")):
        with pytest.raises(PlanError, match=message):
            convert(ConvertOptions(source, out, to=formats, precision="auto"))
    # An encoder has int8 alone, and smaller sizes exclude that.
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "bert")
    bert = Checkpoint.open(tmp_path / "bert")
    gates = write_ranked_gates(bert, tmp_path / "gates", 0.1)
    sized = ConvertOptions(
        str(bert.folder), out, gates, to=("hf", "onnx"), precision="auto", sizes=(0.5,)
    )
    with pytest.raises(PlanError, match="--sizes with --precision int8"):
        convert(sized)
    assert not out.exists()


@pytest.mark.parametrize(("flags", "precision"), [(AMX, "int8"), (VNNI, "int4")])
def test_engines_run_in_the_chosen_precision(
    model: Checkpoint,
    flags: tuple[str, ...],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_machine(monkeypatch, *flags)
    with caplog.at_level(logging.INFO):
        engine = load_slot_engine("onnx", model, replace(SIZES, precision="auto"))
    assert engine.precision.name == precision
    assert caplog.text.count(f"--precision auto: {precision}, as this CPU has ") == 1
    engine.close()
    logits = load_logits_model("onnx", model, 8, "auto")
    assert logits.precision.name == precision
    logits.close()


def test_a_draft_model_has_a_choice_of_its_own(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, *VNNI)
    options = replace(SIZES, draft=str(model.folder), draft_precision="auto", prefill_chunk=8)
    engine = load_slot_engine("onnx", model, options)
    assert engine.precision.name == "fp32"
    assert engine.drafter is not None and engine.drafter.runner.precision.name == "int4"
    engine.close()


def test_encoders_are_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, *VNNI)
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "bert")
    options = PoolingOptions(threads=1, precision="auto")
    engine = load_pooling_engine("onnx", Checkpoint.open(tmp_path / "bert"), options)
    assert engine.precision.name == "int8"
    engine.close()


def test_an_int8_folder_stays_int8(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, *VNNI)
    convert(ConvertOptions(str(model.folder), tmp_path / "int8", precision="int8"))
    folder = Checkpoint.open(tmp_path / "int8")
    engine = load_slot_engine("onnx", folder, replace(SIZES, precision="auto"))
    assert engine.precision.name == "int8"
    engine.close()
