"""Programs that measure; run them on a quiet machine. Results are in docs/benchmarks.md."""
