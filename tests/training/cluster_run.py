"""One process of the run in test_processes.py: the real loader, learner, loop and checkpoints around a tiny policy.

python tests/training/cluster_run.py DATASET RUN NUM_STEPS DATA FSDP
"""

import os
import sys

import jax.numpy as jnp
from flax import nnx

from vla_jax.codecs.text import ByteTokenizer
from vla_jax.core import cluster, functional
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.loader import Loader
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.data.schema import DatasetConfig
from vla_jax.learners.imitation import Imitation
from vla_jax.nets.linear import Dense
from vla_jax.training.fit import FitConfig, FitResult, fit
from vla_jax.training.optimizers import AdamW
from vla_jax.training.sharding import MeshConfig
from vla_jax.training.sources import DatasetSource

HORIZON, ACTION_DIM, STATE_DIM, BATCH_SIZE, WIDTH = 2, 7, 8, 8, 32
METADATA = {"recipe": {"name": "tiny"}, "normalization": None, "cameras": ["front"], "action": {"dim": ACTION_DIM}}


class TinyPolicy(nnx.Module):
    """State and the mean colour to a chunk, with noise, so that keys matter too."""

    action_horizon, action_dim = HORIZON, ACTION_DIM

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = Dense(STATE_DIM + 3, WIDTH, rngs, axes=(None, "embed"))
        self.out = Dense(WIDTH, HORIZON * ACTION_DIM, rngs, axes=("embed", None))

    def loss(self, key, batch):
        colour = batch.observation.images["front"].astype(jnp.float32).mean((1, 2)) / 255
        x = jnp.concatenate([batch.observation.state, colour], axis=-1)
        x = x + 0.1 * nnx.initializers.normal(1.0)(key, x.shape)
        predicted = self.out(jnp.tanh(self.hidden(x))).reshape(batch.actions.shape)
        return jnp.square(predicted - batch.actions).mean((1, 2)), {}


def loader(dataset: str, process_index: int, process_count: int) -> Loader:
    config = DatasetConfig(dataset, HORIZON, cameras=(("front", "image"),))
    tokenizer = ByteTokenizer()
    return Loader(
        config,
        batch_size=BATCH_SIZE,
        seed=3,
        tokenizer=lambda text: tokenizer.encode(text, 48),
        normalizer=Normalizer.create(compute_statistics((config,)), NormalizationConfig()),
        process_index=process_index,
        process_count=process_count,
    )


def run(dataset: str, run_dir: str, num_steps: int, mesh: MeshConfig) -> FitResult:
    import jax

    return fit(
        Imitation(TinyPolicy, AdamW(peak_lr=1e-2).build()),
        DatasetSource(loader(dataset, jax.process_index(), jax.process_count())),
        FitConfig(num_steps, log_every=1, checkpoint_every=5, mesh=mesh),
        run_dir,
        metadata=METADATA,
        logical_axes=functional.logical_axes(TinyPolicy),
        quiet=True,
    )


if __name__ == "__main__":
    cluster.join(cluster.detect(os.environ))
    dataset, run_dir, *numbers = sys.argv[1:]
    num_steps, data, fsdp = map(int, numbers)
    # fsdp_min_size: even these parameters are split, so a checkpoint has to change its sharding.
    run(dataset, run_dir, num_steps, MeshConfig(data, fsdp, fsdp_min_size=1))
