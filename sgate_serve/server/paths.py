"""Paths that middleware and the request log treat specially."""

HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"
# Its errors have Anthropic's shape, as have those of the paths below it.
MESSAGES_PATH = "/v1/messages"
# Monitors poll them every few seconds, so they are logged at debug level only.
QUIET_PATHS = frozenset({HEALTH_PATH, METRICS_PATH})
