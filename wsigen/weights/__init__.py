"""Weights that ship with wsigen: one folder a model, each with its own licence and card."""
