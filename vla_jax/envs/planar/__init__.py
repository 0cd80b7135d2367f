"""Tiny state-only tasks of a point in the plane, in pure JAX: thousands of steps per millisecond on one core."""
