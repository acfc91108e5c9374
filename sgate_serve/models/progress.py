"""Hides transformers' own progress bars: a bar for each file of a model says nothing to a user."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Show no bars of transformers inside the block; afterwards they are as they were."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
