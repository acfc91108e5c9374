"""The fields of all bodies whose texts a model reads: an id, and how long texts are cut."""

from typing import Self

from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.strict_body import StrictBody
from sgate_serve.server.request_ids import SAFE_ID
from sgate_serve.text.truncation import Side, Truncation


class TextBody(StrictBody):
    """The base of these bodies; by default, texts that are too long are refused."""

    request_id: str | None = Field(
        None,
        pattern=f"^{SAFE_ID.pattern}$",
        description="up to 128 letters, digits and `._:/+=@~-`, for the response's `id`",
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        description="the most tokens to read of each text; -1 for as many as fit",
    )
    truncation_side: Side | None = Field(
        None,
        description="left to keep the last tokens or right to keep the first ones, special tokens "
        "like others, together with `truncate_prompt_tokens`",
    )

    @model_validator(mode="after")
    def _check_truncation(self) -> Self:
        if self.truncate_prompt_tokens == 0:
            raise RequestError(
                "`truncate_prompt_tokens` 0 leaves nothing to read; send -1 for as many as fit",
                param="truncate_prompt_tokens",
            )
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise RequestError(
                "`truncation_side` is only for `truncate_prompt_tokens`; leave it out",
                param="truncation_side",
            )
        return self

    def truncation(self, limit: int, default_side: Side | None = None) -> Truncation | None:
        """Return how to cut the texts for a model that reads `limit` tokens of each, if at all.

        Raises RequestError if the body asks for more.
        """
        asked = self.truncate_prompt_tokens
        if asked is None or limit < 1:
            return None
        if asked > limit:
            raise RequestError(
                f"`truncate_prompt_tokens` is {asked}, but at most {limit} tokens fit; send "
                "at most that, or -1",
                param="truncate_prompt_tokens",
            )
        side, is_given = self.truncation_side or default_side, self.truncation_side is not None
        return Truncation(limit if asked == -1 else asked, side, cuts_special=is_given)


class EncoderBody(TextBody):
    """The base of bodies for encoders."""

    use_activation: bool | None = Field(
        None,
        description="true or false; false returns logits, or embeddings that are not scaled, and "
        "true scales embeddings to length 1",
    )
