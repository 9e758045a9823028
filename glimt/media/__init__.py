"""Decodes and resizes images and videos inside the media worker processes."""
