"""Methods as values: data in, (selection, new state) out; numpy only."""
