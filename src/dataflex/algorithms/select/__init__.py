"""Selectors: one method a file."""
