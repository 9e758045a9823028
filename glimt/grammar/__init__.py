"""Grammars: what an answer must match, compiled, and which tokens may come next."""
