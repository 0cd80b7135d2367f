"""Records on disk become typed batches: RLDS, windows, normalization, the grain loader, replay buffers."""
