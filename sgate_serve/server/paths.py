"""The paths that what wraps the endpoints has to know."""

HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"
# Asked every few seconds by machines; their log lines would drown the others.
QUIET_PATHS = frozenset({HEALTH_PATH, METRICS_PATH})
