"""Compile masks into a plan, and a plan into deployable files. Engines are not imported here."""
