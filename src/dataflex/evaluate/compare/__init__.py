"""The same training under several methods and seeds, and what the differences are worth."""
