"""Verbs of ``dataflex-cli`` and the strict reading of configs."""
