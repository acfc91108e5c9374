"""Names of the model card in a folder, and of the part of it that a verification fills in."""

CARD_FILE = "README.md"
CARD_START = "<!-- verification -->"
CARD_END = "<!-- /verification -->"
