"""The GLM-V networks and their checkpoints."""
