"""Compile and time one case in this process; the same for both sides. The last line printed is `RESULT {json}`."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Case(NamedTuple):
    """`step(state, *inputs) -> state`: the state is given back to the next call, its buffers are donated."""

    step: Callable[..., Any]
    state: Any
    inputs: tuple[Any, ...]
    params: Any  # whose scalars are counted
    flops: float | None = None  # of the products of a step; None: the compiler's count, which takes a loop's body once


CASES = ("train_b8", "train_b32", "sample_b1", "layer_b1")


def options(parser: argparse.ArgumentParser, cases: Sequence[str] = CASES) -> argparse.Namespace:
    parser.add_argument("--case", choices=cases, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", required=True, help="folder of compiled programs: an empty one measures cold")
    parsed = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", parsed.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return parsed


def run(case: Case, options: argparse.Namespace, compiler_options: dict[str, Any] | None = None) -> None:
    """Seconds to trace and compile, and of each call after the first two."""
    start = time.perf_counter()
    step = jax.jit(case.step, donate_argnums=0, compiler_options=compiler_options)
    compiled = step.lower(case.state, *case.inputs).compile()
    compile_s = time.perf_counter() - start
    state, seconds = case.state, []
    for _ in range(options.repeats + 2):
        start = time.perf_counter()
        state = jax.block_until_ready(compiled(state, *case.inputs))
        seconds.append(time.perf_counter() - start)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, float))
    print_result(
        compile_s=compile_s,
        seconds=statistics.median(seconds[2:]),
        finite=finite,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(case.params)),
        flops=case.flops or (compiled.cost_analysis() or {}).get("flops"),
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
    )


def print_result(**values: Any) -> None:
    print("RESULT " + json.dumps(values))


def matmul_flops_per_s(dtype: str, size: int = 2048, repeats: int = 5) -> float:
    """The best of a few square products: the peak that shares are stated of."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
