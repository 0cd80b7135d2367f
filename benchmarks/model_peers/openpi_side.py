"""Peer: openpi's own networks, loss and sampler at the shapes of shapes.py; run in an environment of its own.

The train step has the order of operations of openpi's scripts/train.py: merge, differentiate, optimizer, average. Left
out are augmentation (ours trains without, too) and torch, which openpi's JAX files import for their PyTorch twins only:
a stand-in module takes its place. Vocabulary, vision tower and cameras are made small by name; nothing else is changed.
Source: Physical-Intelligence/openpi, commit 15a9616.
"""

import argparse
import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import optax
import shapes
import timing

_ABSENT = ("torch", "torch.nn", "torch.nn.functional", "openpi.models_pytorch", "openpi.models_pytorch.pi0_pytorch")
for name in _ABSENT:
    sys.modules[name] = types.ModuleType(name)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, sys.modules[name])
sys.modules["torch"].Tensor = type("Tensor", (), {})

from flax import linen as nn  # noqa: E402
from flax import nnx  # noqa: E402
from openpi.models import gemma, model, pi0, pi0_config, siglip  # noqa: E402


def make_small() -> None:
    gemma.PALIGEMMA_VOCAB_SIZE = shapes.VOCAB_SIZE
    tower = siglip.Module
    small = types.SimpleNamespace(Module=lambda *args, **kwargs: tower(*args, **{**kwargs, "variant": "mu/14"}))
    pi0._siglip = small
    model.preprocess_observation = functools.partial(model.preprocess_observation, image_keys=shapes.CAMERAS)


def config(dtype: str) -> pi0_config.Pi0Config:
    return pi0_config.Pi0Config(
        dtype=dtype,
        paligemma_variant="dummy",
        action_expert_variant="dummy",
        action_dim=shapes.ACTION_DIM,
        action_horizon=shapes.ACTION_HORIZON,
        max_token_len=shapes.PROMPT_LENGTH,
    )


def batch(batch_size: int) -> tuple[dict, jax.Array]:
    """The fields of an observation (the checked class itself cannot pass through `jit(...).lower`), and actions."""
    given = shapes.arrays(batch_size)
    data = {
        "image": {name: given[name] for name in shapes.CAMERAS},
        "image_mask": {name: jnp.ones(batch_size, bool) for name in shapes.CAMERAS},
        "state": given["state"],
        "tokenized_prompt": given["prompt"],
        "tokenized_prompt_mask": jnp.ones(given["prompt"].shape, bool),
    }
    return jax.tree.map(jnp.asarray, vars(model.Observation.from_dict(data))), jnp.asarray(given["actions"])


def policy_case(name: str, dtype: str) -> timing.Case:
    what, size = name.split("_b")
    observation, actions = batch(int(size))
    graph, params = nnx.split(config(dtype).create(jax.random.key(0)))
    if what == "train":
        optimizer = optax.chain(
            optax.clip_by_global_norm(shapes.CLIP_NORM), optax.adamw(shapes.PEAK_LR, b2=0.95, weight_decay=1e-10)
        )

        def train(state, observation, actions):
            step, params, ema_params, opt_state = state
            key = jax.random.fold_in(jax.random.key(1), step)

            def loss(network, key, observation, actions):
                return jnp.mean(network.compute_loss(key, model.Observation(**observation), actions, train=False))

            differentiated = nnx.DiffState(0, nnx.Param)
            network = nnx.merge(graph, params)
            grads = nnx.grad(loss, argnums=differentiated)(network, key, observation, actions)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            decay = shapes.EMA_DECAY
            ema_params = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema_params, params)
            return step + 1, params, ema_params, opt_state

        state = (jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))
        return timing.Case(train, state, (observation, actions), params)

    def step(carry, params, observation):
        key = jax.random.wrap_key_data(carry[0])
        network = nnx.merge(graph, params)
        sampled = network.sample_actions(key, model.Observation(**observation), num_steps=shapes.NUM_FLOW_STEPS)
        return jax.random.key_data(jax.random.split(key)[0]), sampled

    carry = (jax.random.key_data(jax.random.key(1)), jnp.zeros_like(actions))
    return timing.Case(step, carry, (params, observation), params)


def layer_case(name: str, dtype: str) -> timing.Case:
    size = int(name.split("_b")[1])
    configs = [gemma.Config(**dataclasses.asdict(expert)) for expert in shapes.PUBLISHED]
    network = gemma.Module(configs=configs, embed_dtype=dtype)
    # The class has an `init` of its own, which makes every parameter.
    make = functools.partial(nn.Module.init, network, method="init")
    params = jax.jit(lambda key: make(key, [False, False]))(jax.random.key(0))
    layers = {"layers": params["params"]["layers"]}
    norms = {name: leaf for name, leaf in params["params"].items() if name != "layers"}
    tokens = [jnp.asarray(x, dtype) for x in shapes.layer_arrays(size)]
    prefix, suffix = shapes.LAYER_TOKENS
    positions = jnp.broadcast_to(jnp.arange(prefix + suffix), (size, prefix + suffix))
    block = (positions >= prefix).astype(jnp.int32)
    seen = block[:, None, :] <= block[:, :, None]

    def loss(layers, tokens, norms):
        outputs, _ = network.apply({"params": {**norms, **layers}}, tokens, positions, seen)
        return sum(jnp.square(x.astype(jnp.float32)).mean() for x in outputs)

    def step(state, layers, tokens, norms):
        return jax.grad(loss, argnums=(0, 1))(layers, tokens, norms)

    state = jax.tree.map(jnp.zeros_like, (layers, tokens))
    return timing.Case(step, state, (layers, tokens, norms), layers)


def main() -> None:
    options = timing.options(argparse.ArgumentParser())
    make_small()
    make = layer_case if options.case.startswith("layer") else policy_case
    timing.run(make(options.case, options.dtype), options)


if __name__ == "__main__":
    main()
