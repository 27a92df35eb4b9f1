"""Messages and stubs generated from the contract, package unrolled.v1."""
