"""Plan, order, draws and seeds: arithmetic on indices; numpy and the standard library only."""
