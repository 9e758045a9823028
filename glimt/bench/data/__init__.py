"""Prompts: made, or read from the datasets that others use."""
