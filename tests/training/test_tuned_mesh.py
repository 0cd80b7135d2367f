"""Tuned runs on meshes of eight devices: where adapters lie, the same curve as on one, checkpoints between meshes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests.training import toy_learner
from vla_jax.core import functional
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.learners.imitation import Imitation, ImitationConfig
from vla_jax.nets.linear import Dense, HeadsIn, HeadsOut
from vla_jax.nets.stack import scan_layers, stack
from vla_jax.training import adapters, sharding
from vla_jax.training.adapters import Lora
from vla_jax.training.checkpoints import flatten
from vla_jax.training.fit import FitConfig, fit
from vla_jax.training.optimizers import AdamW
from vla_jax.training.sharding import MeshConfig, path_name
from vla_jax.training.tuning import Tuning, TuningConfig

WIDTH, HEADS, HEAD_DIM, DEPTH, RANK = 32, 4, 8, 2, 4
# 8 / (2 * 2 * 2) rows of a batch of 16 each; nothing is too small to be cut.
MESHES = {"data": MeshConfig(8, 1, 1, 1), "fsdp": MeshConfig(1, 8, 1, 1), "mixed": MeshConfig(2, 2, 2, 1)}
ONE = MeshConfig(data=1)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.into, self.out = HeadsIn(WIDTH, HEADS, HEAD_DIM, rngs), HeadsOut(HEADS, HEAD_DIM, WIDTH, rngs)


class Regression(nnx.Module):
    """State to action through stacked layers with heads: every kind of kernel that a mesh cuts."""

    action_horizon, action_dim = 1, 3

    def __init__(self, rngs):
        self.first = Dense(4, WIDTH, rngs, axes=(None, "embed"))
        self.layers = stack(Block, DEPTH, rngs)
        self.last = Dense(WIDTH, 3, rngs, axes=("embed", None))

    def __call__(self, x):
        def step(x, layers, _):
            return x + layers[0].out(jnp.tanh(layers[0].into(x))), None

        return self.last(scan_layers(step, self.first(x)[:, None], [self.layers])[0])

    def loss(self, key, batch):
        return jnp.square(self(batch.observation.state) - batch.actions).mean((1, 2)), {}

    def sample(self, key, observation, num_samples=1):
        return self(observation.state)[None]


class Batches:
    """A batch that is a function of the step."""

    def example(self):
        return self.next(0, None)[0]

    def next(self, step, actor_params):
        state = np.random.default_rng(step).normal(size=(16, 4)).astype(np.float32)
        actions = np.stack([state[:, 0], state[:, 1] * state[:, 2], np.sin(state[:, 3])], axis=-1)[:, None]
        prompt = np.zeros((16, 1), np.int32)
        observation = Observation({}, {}, state, prompt, prompt > 0)
        return Demonstrations(observation, actions, np.ones(actions.shape, bool), np.ones(16, np.float32)), {}

    def state(self):
        return {}

    def restore(self, state):
        assert state == {}


LORA = dict(lora=(Lora("layers/*kernel", rank=RANK, alpha=8.0),), train=("last/*",))
CONFIGS = {
    "float32": TuningConfig(**LORA),
    "int8": TuningConfig(**LORA, keep_frozen_in="int8"),
    "bfloat16 kernels": TuningConfig(train=("last/*", "layers/*"), keep_frozen_in="bfloat16", train_in="bfloat16"),
}
# Relative difference of the losses after 10 updates. In float32 sums have another order; gradients in bfloat16 are
# summed over the devices in it, and its neighbours are 0.8 % apart.
TOLERANCE = {"float32": 1e-5, "int8": 1e-5, "bfloat16 kernels": 1e-2}


def learner(config):
    optimizer = AdamW(peak_lr=1e-2, weight_decay=0.0, warmup_steps=0).build()
    return Imitation(Regression, optimizer, ImitationConfig(ema_decay=0.5), Tuning(config, Regression))


@pytest.fixture(scope="module")
def base():
    return jax.device_get(functional.init(Regression, jax.random.key(7))[1])  # on the host: runs donate what they get


def train(config, mesh, folder, base, num_steps=10):
    """The result of `fit`, started at `base` or gone on with in `folder`, and the losses of every step."""
    tuned = learner(config)
    result = fit(
        tuned,
        Batches(),
        FitConfig(num_steps, log_every=1, checkpoint_every=5, mesh=mesh),
        folder,
        metadata=toy_learner.METADATA,
        logical_axes=tuned.tuning.logical_axes,
        warm_start=lambda state: tuned.with_base(state, base, jax.random.key(1)),
        thaw=lambda state: tuned.with_frozen(state, base),
        quiet=True,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result, [line["policy/loss"] for line in lines]


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """Every config on one device."""
    return {name: train(config, ONE, tmp_path_factory.mktemp("one"), base) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def moved(base, tmp_path_factory):
    """Five steps over data=8, then five more over fsdp=8."""
    folder = tmp_path_factory.mktemp("moved")
    train(CONFIGS["float32"], MESHES["data"], folder, base, num_steps=5)
    return train(CONFIGS["float32"], MESHES["fsdp"], folder, base, num_steps=10)


def specs(name, mesh):
    tuned = learner(CONFIGS[name])
    state = jax.eval_shape(tuned.init, jax.random.key(0), Batches().example())
    placed = sharding.param_shardings(
        state, sharding.make_mesh(mesh), tuned.tuning.logical_axes, fsdp_min_size=mesh.fsdp_min_size
    )
    return {path_name(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(placed)}


def test_adapters_are_cut_as_their_kernels_and_moments_and_averages_with_them():
    found = specs("float32", MESHES["mixed"])
    assert found["frozen/layers/into/kernel"] == P(None, "fsdp", "tensor")
    for part in ("params", "ema_params", "opt_state/1/0/mu", "opt_state/1/0/nu"):
        own = {path: found[f"{part}/layers/{path}"] for path in ("into/kernel/a", "into/kernel/b", "out/kernel/b")}
        # [layers, embed, rank] and [layers, rank, heads * head_dim]; on the way out the other way round
        assert own == {
            "into/kernel/a": P(None, "fsdp"),
            "into/kernel/b": P(None, "fsdp", "tensor"),
            "out/kernel/b": P(None, None, "fsdp"),
        }, part


def test_int8_kernels_are_cut_as_the_kernels_they_stand_for():
    found = specs("int8", MESHES["mixed"])
    assert found["frozen/layers/into/kernel/values"] == P(None, "fsdp", "tensor")
    assert found["frozen/layers/into/kernel/scales"] == P(None, None, "tensor", "fsdp")  # [layers, 1, heads, head_dim]
    assert found["frozen/layers/out/kernel/values"] == P(None, "tensor", None, "fsdp")


def assert_same_run(name, run, alone):
    (result, losses), (single, expected) = run, alone[name]
    assert len(losses) == 10 and losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(losses, expected, rtol=TOLERANCE[name])
    assert len(jax.tree.leaves(result.state.frozen)[0].sharding.device_set) == 8
    leaves = flatten(result.state.params)
    for path, leaf in flatten(single.state.params).items():
        np.testing.assert_allclose(leaves[path], leaf, atol=10 * TOLERANCE[name], err_msg=path)


@pytest.mark.parametrize(("name", "mesh"), [("int8", "mixed"), ("bfloat16 kernels", "fsdp")])
def test_a_tuned_run_on_eight_devices_has_the_curve_of_one(name, mesh, alone, base, tmp_path):
    assert_same_run(name, train(CONFIGS[name], MESHES[mesh], tmp_path, base), alone)


def test_a_checkpoint_of_one_mesh_goes_on_over_another_along_the_curve_of_one_device(moved, alone):
    assert_same_run("float32", moved, alone)
    assert dict(jax.tree.leaves(moved[0].state.params)[0].sharding.mesh.shape)["fsdp"] == 8


def test_adapters_of_a_cut_run_are_saved_alone_and_merge_into_the_policy_that_acted(moved, base, tmp_path):
    state, tuned = moved[0].state, learner(CONFIGS["float32"])
    whole, factors = tuned.tuning.separate(state.ema_params)
    assert set(flatten(whole)) == {"last/kernel", "last/bias"}
    assert not factors["layers"]["into"]["kernel"]["a"].is_fully_replicated
    adapters.save(tmp_path / "lora", factors, tuned.tuning.sites)
    loaded = adapters.load(tmp_path / "lora", tuned.tuning.sites)
    merged = adapters.merge({**base, **whole}, loaded, tuned.tuning.sites)
    observation = Batches().example().observation
    acted = tuned.act(tuned.actor(state), jax.random.key(0), observation, ())[0]
    again = functional.describe(Regression)[0].bind(jax.device_get(merged)).sample(None, observation)[0]
    np.testing.assert_allclose(again, acted, atol=1e-5)
    untuned = functional.describe(Regression)[0].bind(base).sample(None, observation)[0]
    assert np.abs(untuned - again).max() > 0.1
