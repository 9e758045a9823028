"""A tiny random checkpoint in the hub's format, made on the spot for the demo and the tests."""
