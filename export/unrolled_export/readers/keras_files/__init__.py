"""Checkpoints of Keras."""
