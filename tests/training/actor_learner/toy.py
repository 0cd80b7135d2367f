"""A point that walks on a line, a policy that is one number, and the learner and actor processes of the tests.

python -m tests.training.actor_learner.toy learner RUN_DIR PORT STEPS SECONDS_PER_STEP
python -m tests.training.actor_learner.toy actor ADDRESS NAME SPOOL SECONDS_PER_DECISION
"""

import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vla_jax.core.types import Observation
from vla_jax.data.replay.host import HostBuffer
from vla_jax.envs.base import EnvSpec
from vla_jax.envs.host import HostChunk
from vla_jax.training.actor_learner.actor import Actor, row_of
from vla_jax.training.actor_learner.inbox import Inbox
from vla_jax.training.actor_learner.link import ActorLink, run
from vla_jax.training.actor_learner.server import LearnerServer, ServerConfig
from vla_jax.training.actor_learner.sources import ActorLearnerConfig, ActorLearnerSource
from vla_jax.training.actor_learner.spool import Spool

METADATA = {"recipe": {"name": "toy"}, "normalization": None, "cameras": [], "action": {"dim": 1}}
SPEC = EnvSpec("line", ("go",), ("dx",), ("x", "step"), {}, episode_length=7, control_hz=10.0)
HORIZON = 2


class LineEnv:
    """x moves by the action; beyond 2 the task is solved; after 7 steps time is up. The state counts the steps."""

    spec = SPEC

    def __init__(self, seconds=0.0):
        self._seconds = seconds

    def reset(self, seed):
        self._x, self._step, self._over = np.random.default_rng(seed).uniform(-1, 1), 0, False
        return self._observe()

    def step(self, actions):
        assert not self._over, "stepped after the end"
        time.sleep(self._seconds)
        rewards, discounts, mask = np.zeros((3, len(actions)), np.float32)
        discounts[:] = 1
        success = False
        for i, action in enumerate(np.clip(actions, -1, 1)):
            if self._over:
                break
            self._x, self._step = self._x + float(action[0]), self._step + 1
            success = self._x > 2
            rewards[i], discounts[i], mask[i] = success, 1 - success, 1
            self._over = success or self._step >= SPEC.episode_length
        truncated = self._over and not success
        return HostChunk(rewards, discounts, mask > 0, self._over, truncated, success, self._observe())

    def close(self):
        pass

    def _observe(self):
        state = np.array([self._x, self._step], np.float32)
        return Observation({}, {}, state, np.zeros(1, np.int32), np.zeros(1, bool))


class ToyState(struct.PyTreeNode):
    step: jax.Array
    params: dict


@dataclasses.dataclass(frozen=True)
class ToyLearner:
    """Its parameter moves with every batch, so that two runs are equal only if all their batches are."""

    seconds: float = 0.0

    def init(self, key, example_batch):
        return ToyState(jnp.zeros((), jnp.int32), {"policy": {"bias": jnp.full((1,), 0.4)}})

    def update(self, state, key, batch):
        mean = (batch.rewards.mean() + 0.1 * batch.actions.mean() + 0.01 * batch.observation.state.mean())[None]
        bias = 0.99 * state.params["policy"]["bias"] + 0.01 * jnp.tanh(mean + 0.4)
        metrics = {"bias": bias[0], "reward": batch.rewards.mean()}
        return ToyState(state.step + 1, {"policy": {"bias": bias}}), metrics

    def actor(self, state):
        return state.params

    def observe(self, params, key, observation):
        return observation, observation

    def explore(self, params, key, view):
        noise = jax.random.uniform(key, (view.state.shape[0], HORIZON, 1), minval=-0.5, maxval=0.5)
        return noise + params["policy"]["bias"][None, None]


ABSTRACT = {"policy": {"bias": jax.ShapeDtypeStruct((1,), jnp.float32)}}
ROW = row_of(ToyLearner(), ABSTRACT, SPEC)


class Paced(ActorLearnerSource):
    """As if every update took a while; says where it is."""

    def __init__(self, *args, seconds, **kwargs):
        super().__init__(*args, **kwargs)
        self.seconds = seconds

    def next(self, step, params):
        time.sleep(self.seconds)
        batch, metrics = super().next(step, params)
        print("step", step, int(metrics["collect/rows"]), int(metrics["collect/max_staleness"]), flush=True)
        return batch, metrics


def learner(run_dir, port, steps, seconds):
    from vla_jax.training.fit import FitConfig, fit  # slow to import, and an actor has no use for it

    inbox = Inbox(HostBuffer(ROW, 4096, Path(run_dir) / "replay"))
    server = LearnerServer(inbox, ROW, config=ServerConfig(port=int(port)))
    print(server.address, flush=True)
    config = ActorLearnerConfig(shape=(32,), training_starts=10, publish_every=20)
    source = Paced(server, config, patience=60.0, seconds=float(seconds))
    fit_config = FitConfig(num_train_steps=int(steps), log_every=50, checkpoint_every=50)
    fit(ToyLearner(), source, fit_config, run_dir, metadata=METADATA, quiet=True)
    print("done", flush=True)


def actor(address, name, spool, seconds):
    kept = Spool(ROW, None if spool == "-" else spool)
    made = Actor(LineEnv(float(seconds)), ToyLearner(), seed=sum(map(ord, name)))
    with ActorLink(address, name, ROW, kept) as link:
        run(made, link, kept, timeout=60.0)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    {"learner": learner, "actor": actor}[sys.argv[1]](*sys.argv[2:])
