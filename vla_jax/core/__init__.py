"""What every room speaks: typed batches, modules as pure functions, keys, errors, registries."""
