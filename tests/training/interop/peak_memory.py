"""Run in a process of its own: import a safetensors file into a checkpoint, and print how far memory rose, in bytes."""

import resource
import sys

import jax
import jax.numpy as jnp

from tests.training.interop import examples
from vla_jax.core import functional
from vla_jax.training import checkpoints
from vla_jax.training.interop import layouts, transfer
from vla_jax.training.interop.safetensors import Safetensors


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(source: str, out: str) -> None:
    config = examples.large_paligemma_config()
    template = functional.describe(lambda rngs: examples.PaliGemma(config, rngs))[1]
    jax.block_until_ready(jnp.zeros(1) + 1)
    layout = layouts.layout("paligemma", config, prefix="")
    before = peak()
    params, _ = transfer.import_params(Safetensors(source), layout, template, place=jax.device_put)
    after_reading = peak()
    if out:
        writer = checkpoints.Checkpoints(out)
        writer.save(0, {}, params, {}, dict.fromkeys(checkpoints.REQUIRED))
        writer.wait()
        writer.close()
    print(before, after_reading - before, peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
