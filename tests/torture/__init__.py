"""Servers that are killed under 64 streaming clients: `make torture`, and once in `make test`."""
