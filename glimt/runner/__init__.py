"""Carries plans out on the device."""
