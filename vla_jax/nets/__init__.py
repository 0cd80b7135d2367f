"""Flax NNX modules without experiments in them: attention, towers, mixtures, small encoders, critics."""
