"""Paths that middleware and the request log treat specially."""

HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"
# Monitors poll them every few seconds, so they are logged at debug level only.
QUIET_PATHS = frozenset({HEALTH_PATH, METRICS_PATH})
