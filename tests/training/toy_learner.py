"""The smallest learner, data and command line that a training run can have; shared by the tests of this folder."""

import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from vla_jax.training import sharding
from vla_jax.training.fit import FitConfig, fit
from vla_jax.training.sources import DatasetSource

METADATA = {"recipe": {"name": "toy"}, "normalization": None, "cameras": [], "action": {"dim": 2}}


class ToyState(struct.PyTreeNode):
    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: optax.OptState
    key: jax.Array  # typed: checkpoints must cope


@dataclasses.dataclass(frozen=True)
class ToyLearner:
    """A two-layer regression with noise on its inputs and averaged parameters for acting."""

    optimizer: optax.GradientTransformation = dataclasses.field(default_factory=lambda: optax.adam(1e-2))
    width: int = 16
    noise: float = 0.1
    nan_at: int = -1

    def init(self, key, example_batch):
        inputs, outputs = example_batch["x"].shape[-1], example_batch["y"].shape[-1]
        first, second, kept = jax.random.split(key, 3)
        params = {
            "hidden": {"kernel": jax.random.normal(first, (inputs, self.width)), "bias": jnp.zeros(self.width)},
            "out": {"kernel": 0.1 * jax.random.normal(second, (self.width, outputs)), "bias": jnp.zeros(outputs)},
        }
        ema_params = jax.tree.map(jnp.copy, params)
        return ToyState(jnp.zeros((), jnp.int32), params, ema_params, self.optimizer.init(params), kept)

    def loss(self, params, key, batch):
        x = batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        predicted = hidden @ params["out"]["kernel"] + params["out"]["bias"][None]
        return jnp.square(predicted - batch["y"]).mean()

    def update(self, state, key, batch):
        loss, grads = jax.value_and_grad(self.loss)(state.params, key, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = optax.incremental_update(params, state.ema_params, 0.1)
        loss = jnp.where((self.nan_at >= 0) & (state.step >= self.nan_at), jnp.nan, loss)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
        return ToyState(state.step + 1, params, ema_params, opt_state, jax.random.split(state.key)[0]), metrics

    def actor(self, state):
        return state.ema_params


class ToyLoader:
    """Batches that are a function of the position, `seconds` apart; each process brings its rows."""

    def __init__(self, batch_size=16, seconds=0.0):
        self.batch_size, self.seconds, self.position = batch_size, seconds, 0

    def example(self):
        return self._batch(0)

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self.seconds)
        batch = self._batch(self.position)
        self.position += 1
        return batch

    def state(self):
        return {"position": self.position}

    def restore(self, state):
        self.position = state["position"]

    def _batch(self, position):
        x = np.random.default_rng(position).normal(size=(self.batch_size, 4)).astype(np.float32)
        batch = {"x": x, "y": np.stack([x.sum(-1), x[:, 0] * x[:, 1]], -1)}
        rows = self.batch_size // jax.process_count()
        return {name: leaf[jax.process_index() * rows :][:rows] for name, leaf in batch.items()}


class CountingSource(DatasetSource):
    """With metrics of its own, at some steps only, as sources that run an environment have."""

    def next(self, step, actor_params):
        batch, metrics = super().next(step, actor_params)
        return batch, metrics | ({"source/square": float(step**2) / 3} if step % 3 == 0 else {})


def run(run_dir, *, seconds=0.0, learner=None, batch_size=16, evaluate=None, devices=None, **config):
    config = {
        "num_train_steps": 60,
        "log_every": 5,
        "checkpoint_every": 10,
        "mesh": sharding.MeshConfig(data=1),
    } | config
    source = CountingSource(ToyLoader(batch_size, seconds))
    return fit(
        learner or ToyLearner(),
        source,
        FitConfig(**config),
        run_dir,
        metadata=METADATA,
        evaluate=evaluate,
        devices=devices,
        quiet=True,
    )


if __name__ == "__main__":
    folder, seconds, num_train_steps, *cluster = sys.argv[1:]
    if cluster:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(cluster[0], num_processes=2, process_id=int(cluster[1]))
    mesh = sharding.MeshConfig(data=-1 if cluster else 1)
    result = run(Path(folder), seconds=float(seconds), num_train_steps=int(num_train_steps), mesh=mesh)
    print("interrupted" if result.interrupted else "done", result.train_step)
