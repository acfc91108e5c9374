"""The CLI reads the options off the dataclass without waiting for torch."""

import subprocess
import sys


def test_importing_the_options_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, sgate_serve.training; "
        "print(sorted({'torch', 'transformers', 'peft', 'onnxruntime'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
