"""Engines that run models: the table of engines, what all of them share, and one adapter each."""
