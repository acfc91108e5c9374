"""Paths that middleware and the request log treat specially."""

HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"
PAGE_PATH = "/"
# These tell nothing about the model; the page asks for the key itself.
OPEN_PATHS = frozenset({HEALTH_PATH, PAGE_PATH})
# Its errors have Anthropic's shape, as have those of the paths below it.
MESSAGES_PATH = "/v1/messages"
LOAD_PATH = "/load"
TOKENIZER_INFO_PATH = "/tokenizer_info"
# Monitors poll them every few seconds, so they are logged at debug level only.
QUIET_PATHS = frozenset({HEALTH_PATH, METRICS_PATH, LOAD_PATH})
