"""Checkpoints of recurrent language models: train them, export them for `unrolled-server`."""
