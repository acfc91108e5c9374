"""The fields of all bodies for encoders."""

from pydantic import Field

from sgate_serve.server.protocol.truncated_body import TruncatedBody
from sgate_serve.server.request_ids import ID_EXPECTED, SAFE_ID


class EncoderBody(TruncatedBody):
    """How texts are read, and whether the last step on the outputs is done."""

    request_id: str | None = Field(None, pattern=f"^{SAFE_ID.pattern}$", description=ID_EXPECTED)
    use_activation: bool | None = Field(
        None,
        description="true or false; false returns logits, or embeddings that are not scaled, and "
        "true scales embeddings to length 1",
    )
