"""The process mesh and its collectives."""
