"""Pure functions on arrays, one value per example; the caller masks, averages and stops gradients."""
