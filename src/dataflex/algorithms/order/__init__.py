"""Orders: in which order the chosen samples are shown; one file a method."""
