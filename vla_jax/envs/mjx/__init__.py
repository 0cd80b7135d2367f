"""The embedded tabletop suite: scenes of primitive geometries, a ray renderer, tasks and scripted experts."""
