"""Checkpoints of Torch7."""
