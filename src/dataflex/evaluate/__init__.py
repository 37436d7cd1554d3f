"""Judging trained models: one by one, and methods against each other."""
