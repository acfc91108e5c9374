"""What rounded weights cost: a measurement, which the proof of the plan does not cover.

The weights of an int8 folder are rounded, those of a folder in a narrower float type than its base,
and those of an ONNX graph in fp16, int8 or int4.
Above FAIL_ABOVE, or above `--max-divergence`, a verification fails; above WARN_ABOVE it warns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sgate_serve.verify.output_kind import OutputKind

# In nats, as excess cross-entropy: 0.05 is 5% of perplexity and more than 8 bits cost any model
# (0.01 on SmolLM2-135M), 0.5 is 65% and another model in practice (plain int4: 0.4 to 0.5).
WARN_ABOVE, FAIL_ABOVE = 0.05, 0.5
# Of states and values, whose divergence is undefined: the relative error (root mean square). At 0.1
# the cosine with the exact embedding is 0.995, at 0.5 it is 0.87. Of logits it counts as well:
# where they are small, probabilities are alike, and no divergence shows what rounding took.
WARN_ERROR_ABOVE, FAIL_ERROR_ABOVE = 0.1, 0.5
RANDOM_TOKENS = "random tokens"


@dataclass(frozen=True)
class Quantization:
    """The cost of rounded weights on one engine, compared with the masked dense model in fp32.

    `stored` is the float type that weights of the base were narrowed to in the folder, None if it
    keeps their values; `precision` is what the engine computed with. `mean_kl` is KL(reference ‖
    quantized) in nats per token or text, `greedy_agreement` the fraction of tokens or texts with
    the same best logit; both are None unless the outputs are the logits of a choice.
    `relative_error` is the root mean square of the differences over that of the outputs, for logits
    both less the mean of their row. `data` names the text that was measured on, None for random
    tokens.
    """

    precision: str
    engine: str
    engine_version: str
    max_abs_diff: float
    mean_kl: float | None
    greedy_agreement: float | None
    max_divergence: float | None
    relative_error: float | None = None
    data: str | None = None
    stored: str | None = None

    @property
    def limit(self) -> float:
        """The largest cost that passes."""
        if self.mean_kl is None:
            return FAIL_ERROR_ABOVE
        return FAIL_ABOVE if self.max_divergence is None else self.max_divergence

    @property
    def excess(self) -> str | None:
        """A description of the excess over the limit, or None."""
        # Not `>`: a NaN must count as above.
        what, limit = self._described, self.limit
        if self._cost is None or self._cost <= limit:
            if not self._is_other_model:
                return None
            what, limit = self._erring, FAIL_ERROR_ABOVE
        if self.max_divergence is not None:
            return f"{what}, above --max-divergence {limit:g}"
        remedy = f"convert to another --precision{self._better_data}"
        if self.mean_kl is not None:
            remedy += ", or state what you accept by --max-divergence"
        return f"{what} on {self._text}, above the limit of {limit:g}; {remedy}"

    @property
    def warning(self) -> str | None:
        """A warning of a cost that passes, but that 8 bits would not have, or None."""
        if self._cost is None or self.excess is not None or self.max_divergence is not None:
            return None
        expected = WARN_ERROR_ABOVE if self.mean_kl is None else WARN_ABOVE
        if self._cost <= expected:
            return None
        return (
            f"WARNING: {self._described} on {self._text}, above {expected:g}: answers differ "
            f"noticeably; compare quality with `sgate eval`{self._better_data}"
        )

    def lines(self, outputs: OutputKind) -> Iterator[str]:
        """Yield the measurement as lines of text."""
        text = (
            f"measured, not proven: {self.precision} on {self.engine} {self.engine_version}, "
            f"{self._text}: max abs {outputs.name} difference {self.max_abs_diff:.2e}"
        )
        if self.mean_kl is not None and self.greedy_agreement is not None:
            text += (
                f", mean KL divergence {self.mean_kl:.2e} nats per {outputs.per}, "
                f"{self.greedy_agreement:.1%} of the {outputs.choice} equal"
            )
        if self.relative_error is not None:
            text += f", relative error {self.relative_error:.2e}"
        yield text
        if self.warning is not None:
            yield self.warning

    @property
    def _is_other_model(self) -> bool:
        """Whether logits err by more than the limit; a limit of the user's own replaces this."""
        if self.max_divergence is not None or self.relative_error is None:
            return False
        # Not `>`: a NaN must count as above.
        return not self.relative_error <= FAIL_ERROR_ABOVE

    @property
    def _cost(self) -> float | None:
        return self.relative_error if self.mean_kl is None else self.mean_kl

    @property
    def _described(self) -> str:
        if self.mean_kl is None:
            return self._erring
        return f"{self.precision} diverges by {self.mean_kl:.2e} nats"

    @property
    def _erring(self) -> str:
        return f"{self.precision} has a relative error of {self.relative_error:.2e}"

    @property
    def _text(self) -> str:
        return RANDOM_TOKENS if self.data is None else f"text of {self.data}"

    @property
    def _better_data(self) -> str:
        return ", measure on text of yours by --data FILE" if self.data is None else ""
