"""Scenes of simple shapes and text: composed from a seed, drawn, asked about, and answered."""
