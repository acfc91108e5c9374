"""The vLLM engine: a plugin that teaches unmodified vLLM our folders, and what drives it from here.

`plugin` is found by vLLM through its entry point; `decoder` and `encoder` are the two models, built
from a ModelSpec whatever the family; `engine` and `server` start vLLM for us.
"""
