"""Paths that middleware and the request log treat specially."""

HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"
LOAD_PATH = "/load"
TOKENIZER_INFO_PATH = "/tokenizer_info"
# Monitors poll them every few seconds, so they are logged at debug level only.
QUIET_PATHS = frozenset({HEALTH_PATH, METRICS_PATH, LOAD_PATH})
