"""Sends requests when they are due and notes what comes back, with little in between."""
