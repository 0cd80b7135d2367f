"""Pure iterative samplers: one scan, a fresh key each step, one flow time (0 noise, 1 data)."""
