"""`glimt quantize`: BF16 checkpoints on disk become FP8 checkpoints in the published layout."""
