"""The vLLM engine: a plugin that lets unmodified vLLM load our folders, and code that starts vLLM.

vLLM finds `plugin` through its entry point; `decoder` and `encoder` are the two models, built from
a ModelSpec for every family; `engine`, `timed` and `server` start vLLM.
"""
