"""Proof that conversion changed nothing: the masked dense model against the converted one."""
