"""How many likeliest tokens a call shows at each position, and the limit on all of them."""

from dataclasses import dataclass

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.generation_requests import GenerationRequest
from sgate_serve.server.protocol.vllm_parameters import MAX_LOGPROBS

# Log-probabilities of one call, unless it has a single choice. Each takes about 500 bytes.
MAX_LOGPROB_VALUES = 2**19
ALL = -1


@dataclass(frozen=True)
class LogprobCounts:
    """The tokens shown beside a new one, one of an echoed prompt, and in `prompt_logprobs`.

    Each is None for no log-probabilities.
    """

    new: int | None
    echoed: int | None
    prompt: int | None

    @classmethod
    def of(
        cls, body: GenerationRequest, vocab_size: int, *, echoes: bool = False
    ) -> "LogprobCounts":
        """Return those that a body asks for; it may ask for the whole vocabulary."""

        def count(asked: int | None) -> int | None:
            return vocab_size if asked == ALL else asked

        likeliest = count(body.num_logprobs)
        new = len(body.logprob_token_ids) or likeliest
        return cls(new, likeliest if echoes else None, count(body.prompt_logprobs))

    @property
    def read(self) -> int | None:
        """How many the engine is asked for at each token of the prompt."""
        asked = [count for count in (self.echoed, self.prompt) if count is not None]
        return max(asked, default=None)

    def check(self, num_new: int, num_read: int, max_model_len: int) -> None:
        """Refuse a call whose log-probabilities would take gigabytes.

        `num_new` tokens may be generated and `num_read` are read, over all choices.
        """
        new, read = _each(self.new), _each(self.read)
        found = num_new * new + num_read * read
        deepest = max(new, read)
        # A call of a single choice may have as many as OpenAI's API has, up to any length.
        most = MAX_LOGPROB_VALUES
        if deepest <= _each(MAX_LOGPROBS):
            most = max(most, deepest * max_model_len)
        if found > most:
            param = "prompt_logprobs" if new == 0 else "logprobs"
            raise RequestError(
                f"this call may have {found} log-probabilities, and at most {most} are returned; "
                f"lower n, max_tokens or `{param}`, or send fewer prompts",
                param=param,
            )


def _each(count: int | None) -> int:
    """Return the values at a position: the token's own, and those of the likeliest."""
    return 0 if count is None else 1 + count
