"""Mixers: from which domains the next samples come; one file a method."""
