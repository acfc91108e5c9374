"""The demonstration: the whole pipeline on a small real model, from training to measured speed."""
