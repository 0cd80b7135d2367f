"""The fit loop and what it needs: sources, optimizers, sharding, checkpoints, logs."""
