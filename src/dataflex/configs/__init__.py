"""Method presets shipped with the package."""
