"""Turns requests into prompts and tokens into text; torch-free."""
