"""Measures a model on tasks: `glimt eval`, metrics, comparisons, a report."""
