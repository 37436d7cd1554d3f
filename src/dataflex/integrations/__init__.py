"""Where dynamic training enters a host."""
