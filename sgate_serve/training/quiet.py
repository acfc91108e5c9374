"""Silences what the libraries of training say that no user can act on: bars, notices, warnings."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

LIBRARIES = r"(accelerate|peft|torch|transformers)(\.|$)"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the context, transformers logs errors only and draws no bars; warnings are ignored.

    These are the warnings of LIBRARIES. Whatever was set before is set again afterwards.
    """
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(max(level, logging.ERROR))
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=LIBRARIES)
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
