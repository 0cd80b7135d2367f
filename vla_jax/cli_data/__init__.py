"""`vla-jax data`: thin verbs, each parses its options, calls the library and prints.

verbs.VERBS          name -> verb(arguments, console)
making               generate, convert, cache
looking              inspect, index, stats, view
linting              lint
"""
