"""What was decided, on disk: append-only, atomic, readable by pandas, polars and duckdb."""
