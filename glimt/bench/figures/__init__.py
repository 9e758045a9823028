"""Pure functions from the event log to every figure."""
