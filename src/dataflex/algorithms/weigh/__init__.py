"""Weighers: how much each sample counts in the loss; one file a method."""
