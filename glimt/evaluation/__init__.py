"""Measures a model on tasks: `glimt eval`, metrics, results, a report."""
