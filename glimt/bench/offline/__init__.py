"""Benchmarks without a client: the engine in this process, a start, the image path alone."""
