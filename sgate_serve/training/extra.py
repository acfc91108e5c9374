"""The packages that training needs beyond the core."""

from importlib.util import find_spec

from sgate_serve.errors import TrainingError

PACKAGES = ("torch", "transformers", "peft", "accelerate")


def check_extra_installed() -> None:
    """Raise TrainingError naming what is missing and the command that installs it."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"training needs {', '.join(missing)}, not installed here; "
            'run: pip install "sgate-serve[train]"'
        )
