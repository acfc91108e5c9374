"""Asks transformers, where it is installed, whether it reads a config.json as this package does.

Conversion works without transformers; then only `sgate verify` compares the two readings.
"""

import logging
from pathlib import Path

from sgate_serve.environment import missing_packages
from sgate_serve.progress import activity

logger = logging.getLogger(__name__)


def check_with_transformers(folder: Path, source: Path | None = None) -> None:
    """Compare our reading of `folder`/config.json, named `source` in errors, with transformers'.

    Raises CheckpointError if transformers refuses the config or derives another constant from it.
    """
    if missing_packages(("torch", "transformers")):
        return
    try:
        with activity("loading torch and transformers", is_brief=True):
            from sgate_serve.models.config_check import check_reading
    except ImportError as error:
        logger.warning("transformers cannot be imported, so it checks no config: %s", error)
        return
    check_reading(folder, source)
