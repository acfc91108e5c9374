"""Why a pruned model is as fast as it is: where its time goes, and what this machine can do."""

from sgate_serve.bench.explain.explanation import check_explainable, explain
from sgate_serve.bench.explain.lines import explanation_lines

__all__ = ["check_explainable", "explain", "explanation_lines"]
