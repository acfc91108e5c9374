"""Int8 folders: configs and tensors that are read, and those that are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.checkpoint.int8 import int8_config, is_int8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.errors import CheckpointError
from sgate_serve.reports.inspection import Inspection
from tests.fuzz.model_folders import Folders, write_folders

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("int8"))


@pytest.fixture
def folder(written: Folders, tmp_path: Path) -> Path:
    """A separate int8 folder for each test."""
    options = ConvertOptions(str(written.base), tmp_path / "out", written.gates, precision="int8")
    convert(options)
    return tmp_path / "out"


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config["quantization_config"])
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, **changes: Any) -> None:
    """Replace tensors; None removes one. Keys have `__` for dots."""
    tensors = load_file(folder / SINGLE_FILE)
    for key, value in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / SINGLE_FILE)


def group(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["config_groups"]["group_0"]
    return found


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(quant_method="gptq"), "quant_method is 'gptq', expected 'compressed-t"),
        (lambda c: c.update(format="pack-quantized"), "format is 'pack-quantized', expected 'int-"),
        (lambda c: c.update(quantization_status="frozen"), "quantization_status is 'frozen'"),
        (lambda c: c.update(config_groups={}), r"config_groups is \{\}, expected one group"),
        (lambda c: c.update(config_groups={"g": 3}), "config_groups.'g' is 3, expected an object"),
        (lambda c: c["config_groups"].update(other={}), "config_groups is .*, expected one group"),
        (
            lambda c: c.update(kv_cache_scheme={"num_bits": 8}),
            "'kv_cache_scheme' is .*expected no",
        ),
        (
            lambda c: group(c).update(targets=["Conv"]),
            r"targets is \['Conv'\], expected \['Linear",
        ),
        (lambda c: group(c).update(input_activations=None), "input_activations is None, expected"),
        (lambda c: group(c)["weights"].update(num_bits=4), "weights.num_bits is 4, expected 8"),
        (lambda c: group(c)["weights"].update(symmetric=1), "symmetric is 1, expected True"),
        (
            lambda c: group(c)["weights"].update(strategy="group"),
            "strategy is 'group', expected '",
        ),
        (
            lambda c: group(c)["weights"].update(group_size=128),
            "'group_size' is 128, expected non",
        ),
        (
            lambda c: group(c)["input_activations"].update(dynamic=False),
            "dynamic is False, expect",
        ),
    ],
)
def test_other_quantizations_are_refused_by_name(
    folder: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit_config(folder, edit)
    remedy = "reads W8A8 int8 of compressed-tensors and nothing else quantized: give the unquant"
    with pytest.raises(CheckpointError, match=f"quantization_config: .*{message}.*{remedy}"):
        Checkpoint.open(folder)


def test_config_of_another_type_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"c.json: quantization_config must be an object"):
        is_int8({"quantization_config": "int8"}, "c.json")
    edit_config(folder, lambda c: c.update(ignore="lm_head"))
    with pytest.raises(CheckpointError, match="ignore must be a list of strings, found 'lm_head'"):
        Checkpoint.open(folder)


def test_configs_written_by_the_library_are_read() -> None:
    """compressed-tensors 0.17 writes every field; these are its defaults."""
    config = int8_config(["lm_head"])
    config |= {"kv_cache_scheme": None, "global_compression_ratio": None, "version": "0.17.0"}
    unset: dict[str, Any] = {
        "group_size": None,
        "block_structure": None,
        "actorder": None,
        "scale_dtype": None,
    }
    unset |= {"zp_dtype": None, "observer": "memoryless_minmax", "observer_kwargs": {}}
    own = config["config_groups"]["group_0"]
    own = {**own, "weights": {**own["weights"], **unset}, "output_activations": None}
    config["config_groups"] = {"linears": own | {"format": "int-quantized"}}
    assert is_int8({"quantization_config": config}, "config.json")
    assert not is_int8({"quantization_config": None}, "config.json")


def test_tensors_that_contradict_the_config_are_refused(folder: Path) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    weight, scale = tensors[f"{UP}.weight"], tensors[f"{UP}.weight_scale"]
    name = UP.replace(".", "__")
    for change, message in (
        ({f"{name}__weight_scale": None}, f"tensor {UP}.weight_scale is missing"),
        (
            {f"{name}__weight_scale": scale[:, 0].copy()},
            rf"{UP}.weight_scale has shape \[{len(scale)}\], config.json implies "
            rf"\[{len(scale)}, 1\]",
        ),
        ({f"{name}__weight_scale": scale * 0}, f"{UP}.weight_scale must hold positive numbers"),
        ({f"{name}__weight_scale": scale * np.nan}, "weight_scale must hold positive numbers"),
        ({f"{name}__weight_scale": scale.astype(np.int64)}, "weight_scale is stored as I64; give"),
        (
            {f"{name}__weight_scale": scale, f"{name}__weight": weight.astype(np.float32)},
            f"{UP}.weight is stored as F32, expected I8 by quantization_config in config.json; con",
        ),
        (
            {f"{name}__weight": weight, "model__norm__weight": np.ones(8, np.int8)},
            "model.norm.weight is stored as I8; give the unquantized checkpoint",
        ),
    ):
        edit_tensors(folder, **change)
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.open(folder)


def test_int8_weights_without_the_config_are_refused(folder: Path) -> None:
    path = folder / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "quantization_config"}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is stored as I8; give the unquantized checkpoint"):
        Checkpoint.open(folder)


def test_an_int8_folder_is_refused_as_base(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="out is quantized to int8; give the unquantized"):
        open_masked(folder, None)


def test_inspect_shows_the_precision_and_counts_bytes(written: Folders, folder: Path) -> None:
    floats, report = Inspection.of(written.pruned).to_json(), Inspection.of(folder).to_json()
    assert (floats["precision"], report["precision"]) == ("fp32", "int8")
    spec = Checkpoint.open(folder).spec
    rows = sum(spec.module_shape(index, name)[0] for name, index in spec.module_names().items())
    saved = 3 * spec.num_gateable - 4 * rows
    for key in ("bytes_stored", "bytes_per_decode_step"):
        assert floats[key] - report[key] == saved
    # The head is tied: every table is read.
    assert report["bytes_stored"] == report["bytes_per_decode_step"]
    assert (
        f"parameters, int8, {report['bytes_stored']:,} bytes"
        in list(Inspection.of(folder).lines())[1]
    )
