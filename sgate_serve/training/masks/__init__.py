"""Masks: importance scores, the selection of gates that close, and running a model under a mask."""
