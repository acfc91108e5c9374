"""docs/format.md names every text file and every key that the code reads."""

import re
from pathlib import Path

from sgate_serve.checkpoint.companions import COMPANION_FILES
from sgate_serve.text.pooling import INCLUDE_PROMPT, WIDTHS
from sgate_serve.text.sentence_files import (
    FOLDER_FILES,
    IDLE,
    IDLE_ARGUMENTS,
    NEUTRAL,
    SETTINGS_FILES,
)
from sgate_serve.text.tokenizer_files import EXTRA, NAMED, OLD_EXTRA, REFUSED, SETTINGS

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def test_every_file_and_key_is_named() -> None:
    named = set(re.findall(r"`([^`\n]+)`", PAGE))
    files = {*COMPANION_FILES, *FOLDER_FILES} - set(SETTINGS_FILES[1:])
    keys = {*SETTINGS, *NAMED, EXTRA, OLD_EXTRA, *REFUSED, *NEUTRAL, *IDLE, *IDLE_ARGUMENTS}
    assert {*files, *keys, *WIDTHS, INCLUDE_PROMPT} - named == set()
    stems = {name.removeprefix("sentence_").removesuffix("_config.json") for name in SETTINGS_FILES}
    assert stems - named == {"bert"}
