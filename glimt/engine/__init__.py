"""Decides what each step computes; pure Python and numpy, no torch."""
