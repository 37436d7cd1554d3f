"""A selector for DataFlex in a package of its own."""
