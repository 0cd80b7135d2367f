"""Records on disk, read in place and written: one file per format, and what they share."""
