"""vla_jax: pretrain, fine-tune, serve and evaluate vision-language-action policies in JAX."""

from vla_jax.core import runtime as _runtime

__version__ = "0.1.0"

_runtime.avoid_broken_cpu_defaults()
