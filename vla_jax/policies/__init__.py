"""One file per action decoder: a conditional distribution over action chunks."""
