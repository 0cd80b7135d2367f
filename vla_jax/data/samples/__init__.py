"""Which frames become samples, in which order, and what is drawn for each."""
