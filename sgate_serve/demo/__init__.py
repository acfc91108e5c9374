"""The whole pipeline on a small real model: train, gate, convert, verify, serve, measure."""
