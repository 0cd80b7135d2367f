"""Pictures between a set of episodes and a batch: decoded, resized, cached, augmented."""
