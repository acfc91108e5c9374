"""Every way in which foreign gates can be wrong: an error that names file, tensor and remedy."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError, GatesError, SgateError
from tests.converters.importers.gated_llama import GatedLlama
from tests.small_llama import dense_llama

DOWN = "model.layers.0.mlp.down_proj"
ROWS, COLUMNS = f"{DOWN}.gates_rows._gates_logits", f"{DOWN}.gates_columns._gates_logits"
PEFT = "base_model.model."
ADAPTER = "adapter_model.safetensors"

Tensors = dict[str, Tensor]


@pytest.fixture
def gated(tmp_path: Path) -> GatedLlama:
    return GatedLlama.wrap(dense_llama(num_hidden_layers=1), tmp_path / "base")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {ROWS: torch.ones(1, 47)},
            rf"model\.safetensors: {ROWS} is F32 of shape \[1, 47\], but {DOWN} has 48 rows; give",
        ),
        ({COLUMNS: torch.ones(2, 15)}, r"of shape \[2, 15\], but .* has 30 columns"),
        ({ROWS: torch.ones(1, 48, dtype=torch.int64)}, rf"{ROWS} is I64 of shape"),
        (
            {ROWS: torch.full((1, 48), torch.nan)},
            rf"model\.safetensors: {ROWS} holds NaN or infinite logits; save or train",
        ),
        ({ROWS: torch.full((1, 48), torch.inf)}, "holds NaN or infinite logits"),
        (
            {"model.layers.7.mlp.up_proj.gates_rows._gates_logits": torch.ones(1, 30)},
            r"gates model\.layers\.7\.mlp\.up_proj, which is not a linear of .*base; expected "
            r"one like model\.layers\.0\.self_attn\.q_proj; give the base",
        ),
        (
            {"lm_head.gates_rows._gates_logits": torch.ones(1, 96)},
            r"lm_head\.gates_rows\._gates_logits is F32 of shape .*, but lm_head has 97 rows",
        ),
        ({"lm_head.bias": torch.ones(96)}, r"lm_head\.bias is F32 of shape \[96\], the base wants"),
        ({f"{DOWN}.bias": torch.ones(47)}, rf"{DOWN}\.bias is F32 of shape \[47\], the base wants"),
    ],
)
def test_malformed_checkpoints(
    gated: GatedLlama, tmp_path: Path, change: Tensors, message: str
) -> None:
    folder, out = gated.save_finegates(tmp_path / "gates"), tmp_path / "out"
    save_file(gated.finegates_tensors() | change, folder / "model.safetensors")
    with pytest.raises(GatesError, match=message):
        convert(ConvertOptions(str(gated.base.folder), out, folder))
    assert not out.exists()


def test_a_bias_that_is_not_finite(gated: GatedLlama, tmp_path: Path) -> None:
    folder = gated.save_finegates(tmp_path / "gates")
    bias = {f"{DOWN}.bias": torch.full((48,), torch.nan)}
    save_file(gated.finegates_tensors() | bias, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{DOWN}\.bias holds NaN"):
        convert(ConvertOptions(str(gated.base.folder), tmp_path / "out", folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {f"{PEFT}{DOWN}.finegates_rows": torch.ones(3)},
            rf"adapter_model\.safetensors: {PEFT}{DOWN}\.finegates_rows is F32 of shape \[3\]",
        ),
        (
            {f"{PEFT}lm_head.finegates_rows": torch.ones(96)},
            r"lm_head\.finegates_rows is F32 of shape \[96\], but lm_head has 97 rows",
        ),
        ({"frob.weight": torch.ones(3)}, r"frob\.weight does not start with base_model\.model\."),
        (
            {f"{PEFT}{DOWN}.bias": torch.ones(48), f"{PEFT}{DOWN}.base_layer.bias": torch.ones(48)},
            rf"{DOWN}\.bias both replace {DOWN}\.bias; remove one|"
            rf"base_layer\.bias both replace {DOWN}\.bias; remove one",
        ),
        ({f"{PEFT}frob.lora_A": torch.ones(3)}, r"frob\.lora_A is neither a tensor of the base"),
    ],
)
def test_malformed_adapters(
    gated: GatedLlama, tmp_path: Path, change: Tensors, message: str
) -> None:
    folder = gated.save_peft(tmp_path / "gates")
    save_file(gated.peft_tensors() | change, folder / "adapter_model.safetensors")
    with pytest.raises(GatesError, match=message):
        open_masked(gated.base.folder, folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"adapter_config\.json is missing; copy it from where the adapter was saved"),
        ("[]", r"adapter_config\.json must hold a JSON object"),
        (
            '{"peft_type": "LORA"}',
            r"peft_type 'LORA', expected 'FINEGATES'; only gate adapters can",
        ),
    ],
)
def test_adapter_configs(
    gated: GatedLlama, tmp_path: Path, config: str | None, message: str
) -> None:
    folder = gated.save_peft(tmp_path / "gates")
    (folder / "adapter_config.json").unlink()
    if config is not None:
        (folder / "adapter_config.json").write_text(config)
    with pytest.raises(GatesError, match=message):
        open_masked(gated.base.folder, folder)


@pytest.mark.parametrize("kind", ["finegates", "peft"])
def test_a_base_of_other_shapes(gated: GatedLlama, tmp_path: Path, kind: str) -> None:
    gates = gated.save(kind, tmp_path / "gates")
    other = GatedLlama.wrap(
        dense_llama(num_hidden_layers=1, intermediate_size=28), tmp_path / "other"
    )
    with pytest.raises(GatesError, match=r"has 28 (rows|columns); give the base that it was"):
        open_masked(other.base.folder, gates)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin"])
def test_pickles(gated: GatedLlama, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "gates"
    folder.mkdir()
    (folder / name).write_bytes(b"never read")
    for location in (folder, folder / name):
        with pytest.raises(GatesError, match=rf"{name} is a pickle, .* save it as safetensors"):
            open_masked(gated.base.folder, location)


def test_places_that_hold_no_gates(gated: GatedLlama, tmp_path: Path) -> None:
    base = gated.base.folder
    with pytest.raises(GatesError, match="nowhere: no such file or folder; give the folder"):
        open_masked(base, tmp_path / "nowhere")
    with pytest.raises(GatesError, match=r"base holds no gates: it is a model folder; give the f"):
        open_masked(base, base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GatesError, match=r"empty holds no gates; this release reads sgate gates f"):
        open_masked(base, tmp_path / "empty")
    (tmp_path / "gates.safetensors").write_bytes(b"short")
    with pytest.raises(GatesError, match="no safetensors header"):
        open_masked(base, tmp_path / "gates.safetensors")
    (tmp_path / "text.txt").write_text("The cat sat on the mat.")
    with pytest.raises(GatesError, match=r"text\.txt is not a safetensors file; --gates takes a g"):
        open_masked(base, tmp_path / "text.txt")


def test_places_near_gates(gated: GatedLlama, tmp_path: Path) -> None:
    base = gated.base.folder
    gated.save_sgate(tmp_path / "run" / "gates")
    with pytest.raises(GatesError, match=r"run holds no gates; did you mean .*run/gates\?"):
        open_masked(base, tmp_path / "run")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({f"{PEFT}x.lora_A.weight": torch.ones(2, 2)}, lora / ADAPTER)
    for location in (lora, lora / ADAPTER):
        with pytest.raises(
            GatesError, match=r"holds no gates: it is a PEFT adapter \(LORA\); merge"
        ):
            open_masked(base, location)


def test_several_kinds_in_one_place_want_a_choice(gated: GatedLlama, tmp_path: Path) -> None:
    folder = gated.save_peft(tmp_path / "gates")
    save_file(gated.finegates_tensors(), folder / "model.safetensors")
    with pytest.raises(GatesError, match=r"choose with --gates-kind finegates\|peft"):
        open_masked(gated.base.folder, folder)
    for kind in ("finegates", "peft"):
        assert open_masked(gated.base.folder, folder, gates_kind=kind).masks


def test_a_kind_that_is_not_there(gated: GatedLlama, tmp_path: Path) -> None:
    base, folder = gated.base.folder, gated.save_finegates(tmp_path / "gates")
    with pytest.raises(GatesError, match=r"gates holds no adapter_model\.safetensors; is it"):
        open_masked(base, folder, gates_kind="peft")
    with pytest.raises(GatesError, match=r"no tensor ends in \.finegates_rows or .*, as in"):
        open_masked(base, folder / "model.safetensors", gates_kind="peft")
    with pytest.raises(GatesError, match="--gates-kind frob: this release reads sgate, finegates"):
        open_masked(base, folder, gates_kind="frob")


def test_a_kind_without_gates(gated: GatedLlama) -> None:
    with pytest.raises(GatesError, match="--gates-kind peft without --gates; name the gates"):
        open_masked(gated.base.folder, None, gates_kind="peft")


def test_truncated_files_are_typed_errors(gated: GatedLlama, tmp_path: Path) -> None:
    folder = gated.save_finegates(tmp_path / "gates")
    content = (folder / "model.safetensors").read_bytes()
    for length in range(0, len(content), 97):
        (folder / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(SgateError):
            open_masked(gated.base.folder, folder)


@pytest.mark.parametrize("command", ["plan", "convert", "verify"])
def test_every_command_takes_the_kind(
    gated: GatedLlama, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    base, gates = str(gated.base.folder), str(gated.save_peft(tmp_path / "gates"))
    words = {"plan": [], "convert": ["--out", str(tmp_path / "out")], "verify": [base]}[command]
    status = main([command, base, *words, "--gates", gates, "--gates-kind", "finegates"])
    assert status == 2
    error = capsys.readouterr().err
    assert f"{gates} holds no model.safetensors or model.safetensors.index.json" in error
