"""One file per training algorithm: init, update, act."""
