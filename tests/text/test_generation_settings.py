"""Defaults of generation that the server does not apply are named; neutral ones are not."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from sgate_serve.text.generation_settings import unapplied_settings, warn_unapplied


def test_settings_that_change_the_text_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1, eos_token_id=[2, 3]
    )
    config.save_pretrained(tmp_path)
    expected = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    assert unapplied_settings(tmp_path) == expected
    warn_unapplied(tmp_path)
    assert "generation_config.json: temperature 0.6, top_p 0.9, repetition_penalty 1.1 not" in (
        caplog.text
    )


@pytest.mark.parametrize(
    "stored", [None, {}, {"eos_token_id": 2, "temperature": 1.0, "top_k": 0, "num_beams": 1}]
)
def test_neutral_settings_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stored: dict[str, object] | None
) -> None:
    if stored is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    warn_unapplied(tmp_path)
    assert not caplog.text
