"""The small model that comes with Glimt: data, and where to find it."""
