"""Per-sample gradients of the trainable linear modules, one backward for a whole batch of rows."""
