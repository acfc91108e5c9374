"""The packages that training needs beyond the core."""

from sgate_serve.environment import missing_packages
from sgate_serve.errors import TrainingError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "sklearn", "scipy")


def check_extra_installed() -> None:
    """Raise TrainingError naming what is missing and the command that installs it."""
    missing = missing_packages(PACKAGES)
    if missing:
        raise TrainingError(
            f"training needs {', '.join(missing)}, not installed here; "
            'run: pip install "sgate-serve[train]"'
        )
