"""The cost of rounding: what it is measured on, and from where on it warns or fails."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.verify.certificate import CERTIFICATE_FILE, certificate_line, read_certificate
from sgate_serve.verify.output_kind import CLASSES, HIDDEN_STATES, TOKENS
from sgate_serve.verify.rounding import (
    FAIL_ABOVE,
    FAIL_ERROR_ABOVE,
    WARN_ABOVE,
    WARN_ERROR_ABOVE,
    Quantization,
)
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import ZOO, build
from tests.text_model import write_tokenizer

INT4 = Quantization(
    precision="int4",
    engine="onnx",
    engine_version="1.32.0",
    max_abs_diff=3.0,
    mean_kl=0.58,
    greedy_agreement=0.448,
    max_divergence=None,
)
STATES = replace(INT4, mean_kl=None, greedy_agreement=None, relative_error=0.2)


def test_a_cost_above_the_limit_fails_and_says_what_to_do() -> None:
    assert INT4.excess == (
        "int4 diverges by 5.80e-01 nats on random tokens, above the limit of 0.5; convert to "
        "another --precision, measure on text of yours by --data FILE, or state what you accept by "
        "--max-divergence"
    )
    on_text = replace(INT4, data="essays.txt").excess
    assert on_text is not None and "on text of essays.txt" in on_text and "--data" not in on_text


@pytest.mark.parametrize(
    ("cost", "fails", "warns"),
    [
        (WARN_ABOVE, False, False),
        (0.06, False, True),
        (FAIL_ABOVE, False, True),
        (0.51, True, False),
    ],
)
def test_warnings_lie_between_the_limits(cost: float, fails: bool, warns: bool) -> None:
    rounded = replace(INT4, mean_kl=cost)
    assert ((rounded.excess is not None), (rounded.warning is not None)) == (fails, warns)
    assert any(line.startswith("WARNING: int4 div") for line in rounded.lines(TOKENS)) is warns
    # A limit of the user's own replaces both.
    own = replace(rounded, max_divergence=0.055)
    assert own.warning is None and (own.excess is not None) == (cost > 0.055)


@pytest.mark.parametrize(
    ("error", "fails", "warns"),
    [(WARN_ERROR_ABOVE, False, False), (0.2, False, True), (FAIL_ERROR_ABOVE + 0.1, True, False)],
)
def test_states_have_a_relative_error_instead(error: float, fails: bool, warns: bool) -> None:
    rounded = replace(STATES, relative_error=error)
    assert ((rounded.excess is not None), (rounded.warning is not None)) == (fails, warns)
    (line, *_) = rounded.lines(HIDDEN_STATES)
    assert line.endswith(f"max abs hidden state difference 3.00e+00, relative error {error:.2e}")


@pytest.mark.parametrize("rounded", [INT4, STATES])
def test_nothing_that_is_no_number_passes(rounded: Quantization) -> None:
    nan = float("nan")
    field = "mean_kl" if rounded.mean_kl is not None else "relative_error"
    broken = (
        replace(INT4, mean_kl=nan) if field == "mean_kl" else replace(STATES, relative_error=nan)
    )
    assert broken.excess is not None


def test_measured_is_told_from_proven() -> None:
    (line, *_) = replace(INT4, mean_kl=0.01).lines(CLASSES)
    assert line == (
        "measured, not proven: int4 on onnx 1.32.0, random tokens: max abs logit difference "
        "3.00e+00, mean KL divergence 1.00e-02 nats per text, 44.8% of the predicted classes equal"
    )


@pytest.fixture
def options(tmp_path: Path) -> VerifyOptions:
    """A base with a tokenizer, and its conversion with an int4 graph."""
    build(ZOO["llama"][0], seed=0, vocab_size=400).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    to = ("hf", "onnx")
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", to=to, precision="int4"))
    return VerifyOptions(str(tmp_path / "base"), str(tmp_path / "out"))


def test_without_text_random_tokens_are_named(options: VerifyOptions) -> None:
    result = verify(replace(options, max_divergence=5))
    assert result.passed and result.graph_equal and result.quantization is not None
    assert result.quantization.data is None
    said = list(result.lines())
    assert said[0].startswith("proven: onnx ") and "before quantization" in said[0]
    assert "not checked: the cost of rounding on real text (--data FILE)" in said
    assert said[-1] == "verified: the plan; int4 is a measured approximation"


def test_text_is_compared_and_rounding_measured_on_it_alone(
    options: VerifyOptions, tmp_path: Path
) -> None:
    data = tmp_path / "text.txt"
    data.write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
    random = verify(replace(options, max_divergence=5))
    result = verify(replace(options, max_divergence=5, data=data))
    found = result.quantization
    assert result.passed and found is not None and random.quantization is not None
    assert found.data == "text.txt" and found.mean_kl != random.quantization.mean_kl
    assert result.prompts[: len(random.prompts)] == random.prompts
    texts = result.prompts[len(random.prompts) :]
    assert texts and result.num_tokens == random.num_tokens + sum(map(len, texts))
    said = "\n".join(result.lines())
    assert "text of text.txt: max abs logit" in said and "real text" not in said


def test_default_limits_decide(options: VerifyOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgate_serve.verify.rounding.FAIL_ABOVE", 1e-6)
    result = verify(options)
    assert not result.passed and result.tensors_equal and result.graph_equal
    assert result.difference is not None and "above the limit of 1e-06" in result.difference


def test_other_engines_do_not_measure_the_graph(options: VerifyOptions) -> None:
    result = verify(replace(options, engine="torch"))
    assert result.passed and result.quantization is None and result.graph_equal
    line = "the cost of rounding in onnx/model.onnx (--engine onnx)"
    assert line in result.not_checked and f"not checked: {line}" in result.lines()


def test_certificates_say_what_was_measured_on(options: VerifyOptions) -> None:
    out = Path(options.out)
    verify(replace(options, max_divergence=5)).write(out)
    stored = read_certificate(out / CERTIFICATE_FILE)
    assert "nats on random tokens" in certificate_line(stored)
    assert "not checked: several texts in one batch" in (out / "README.md").read_text()
    old = {key: value for key, value in stored.items() if key != "config_equal"}
    (out / CERTIFICATE_FILE).write_text(json.dumps(old))
    found = certificate_line(read_certificate(out / CERTIFICATE_FILE))
    assert "by an older release, which compared neither config.json nor the graph" in found
