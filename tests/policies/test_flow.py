import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from tests.policies import words
from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations
from vla_jax.nets.vla_transformer import VlaTransformer, pi0, pi05
from vla_jax.policies import base
from vla_jax.policies.flow import FlowConfig, FlowPolicy, Insulation, sample_time
from vla_jax.policies.token_loss import token_losses

KEY = jax.random.key(0)
H, A, B = 4, 2, 3


def make(backbone=examples.conv_film, **changes):
    adaptive = changes.get("time_conditioning") == "adaptive_norm"
    config = FlowConfig(H, A, **changes)
    return examples.init(lambda rngs: FlowPolicy(config, backbone(H, adaptive, rngs), rngs), KEY)


def batch_of(actions, mask=None):
    mask = jnp.ones(actions.shape, bool) if mask is None else mask
    return Demonstrations(examples.observation(KEY, len(actions)), actions, mask, jnp.ones(len(actions)))


ACTIONS = jax.random.uniform(KEY, (B, H, A), minval=-1, maxval=1)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
@pytest.mark.parametrize("time_conditioning", ["concat", "adaptive_norm"])
def test_the_policy_has_its_capabilities_and_shapes(backbone, time_conditioning):
    net, params = make(backbone, time_conditioning=time_conditioning, loss_samples=2)
    base.require(FlowPolicy, base.Policy, base.HasPrefix, base.HasVelocity)
    policy = net.bind(params)
    assert isinstance(policy, base.Policy) and (policy.action_horizon, policy.action_dim) == (H, A)
    loss, metrics = policy.loss(KEY, batch_of(ACTIONS))
    assert loss.shape == (B,) and (loss >= 0).all() and metrics["flow/loss"].shape == ()
    assert policy.sample(KEY, batch_of(ACTIONS).observation, 5).shape == (5, B, H, A)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_masked_entries_change_neither_the_loss_nor_any_gradient(backbone):
    net, params = make(backbone, loss_samples=2)
    mask = jnp.ones((B, H, A), bool).at[0, 2:].set(False).at[1, :, 1].set(False)

    def loss(params, actions):
        return net.bind(params).loss(KEY, batch_of(actions, mask))[0].mean()

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (grads, action_grads) = value_and_grad(params, ACTIONS)
    other_value, (other_grads, _) = value_and_grad(params, jnp.where(mask, ACTIONS, 7.0))
    assert value == other_value
    assert all(map(jnp.array_equal, jax.tree.leaves(grads), jax.tree.leaves(other_grads)))
    assert (action_grads[~mask] == 0).all() and (action_grads[mask] != 0).any()


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_sampling_equals_sampling_from_the_prefix_and_samples_do_not_depend_on_each_other(backbone):
    net, params = make(backbone)
    policy, observation = net.bind(params), batch_of(ACTIONS).observation
    samples = policy.sample(KEY, observation, 3)
    assert jnp.array_equal(samples, policy.sample_from(KEY, policy.prefix(observation), 3))
    assert len({float(x) for x in samples[:, 0, 0, 0]}) == 3
    # the noise of the first of one sample differs from that of three, so compare through the field itself
    x, time = jax.random.normal(KEY, (3, B, H, A)), jnp.full(B, 0.3)
    prefix = policy.prefix(observation)
    together = jax.vmap(lambda x: policy.velocity(prefix, x, time))(x)
    alone = jnp.stack([policy.velocity(prefix, row, time) for row in x])
    assert jnp.allclose(together, alone, atol=1e-5)


def test_a_perfect_field_has_no_loss_and_samples_the_dirac():
    """With the field of a Dirac, (target - x) / (1 - time), in place of the network: loss 0, samples at the target.

    A loss with time or velocity reversed would be large here although sampling alone might still look right.
    """
    target = jnp.array([[0.5, -0.5]] * H)

    class Dirac(FlowPolicy):
        def velocity(self, prefix, x, time):
            return (target[None] - x) / (1 - time)[:, None, None]

    config = FlowConfig(H, A, loss_samples=16)
    net, params = examples.init(lambda rngs: Dirac(config, examples.conv_film(H, False, rngs), rngs), KEY)
    batch = batch_of(jnp.broadcast_to(target, (B, H, A)))
    assert (net.bind(params).loss(KEY, batch)[0] < 1e-4).all()
    assert jnp.allclose(net.bind(params).sample(KEY, batch.observation), target[None, None], atol=1e-5)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
@pytest.mark.parametrize("time_conditioning", ["concat", "adaptive_norm"])
def test_both_modes_of_bimodal_actions_are_learned(backbone, time_conditioning):
    """Whole chunks are +0.6 or -0.6 with equal chance: a regression to the mean would put every sample at 0."""
    net, params = make(backbone, time_conditioning=time_conditioning, loss_samples=8)
    observation = jax.tree.map(lambda x: x[:1].repeat(16, 0), examples.observation(KEY))
    signs = jnp.where(jnp.arange(16) % 2 == 0, 0.6, -0.6)[:, None, None]
    batch = batch_of(jnp.broadcast_to(signs, (16, H, A))).replace(observation=observation)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))
    params, losses = examples.train(lambda p, key: net.bind(p).loss(key, batch)[0].mean(), params, 400, optimizer)
    assert losses[-20:].mean() < 0.3 * losses[0]
    samples = net.bind(params).sample(KEY, jax.tree.map(lambda x: x[:1], observation), 64)[:, 0]
    distance = jnp.abs(jnp.abs(samples) - 0.6).mean((1, 2))
    share = (samples.mean((1, 2)) > 0).mean()
    assert (distance < 0.4).mean() > 0.85, distance  # 0.6 is the distance of a mean policy
    assert 0.2 < share < 0.8


def test_time_distributions_have_the_published_means():
    # uniform: 1/2; pi0: Beta(1.5, 1) has mean 0.6, so ours is 0.999 * 0.4; reversed time would give 0.6
    assert jnp.allclose(sample_time(KEY, (20000,), "uniform").mean(), 0.5, atol=0.01)
    times = sample_time(KEY, (20000,), "pi0")
    assert jnp.allclose(times.mean(), 0.3996, atol=0.01) and times.min() >= 0 and times.max() <= 0.999


def test_clipping_is_an_option():
    loud = jax.tree.map(lambda x: 3 * x, make()[1])
    observation = batch_of(ACTIONS).observation
    assert jnp.abs(make()[0].bind(loud).sample(KEY, observation, 4)).max() > 1
    assert jnp.abs(make(clip_actions=True)[0].bind(loud).sample(KEY, observation, 4)).max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        dict(loss_samples=0),
        dict(time_distribution="beta"),
        dict(time_conditioning="x"),
        dict(action_weights=(1.0,)),
        dict(action_weights=(1.0, 0.0)),
    ],
)
def test_impossible_configs_are_rejected(changes):
    with pytest.raises(errors.ConfigError):
        FlowConfig(H, A, **changes)


INSULATED = FlowConfig(words.H, words.A, time_conditioning="adaptive_norm", insulation=Insulation(words.TEXT))


def pi05_policy(config):
    return lambda rngs: FlowPolicy(config, VlaTransformer(words.pi05_config(), rngs), rngs)


def test_insulation_keeps_the_flow_loss_out_of_the_prefix_and_trains_it_with_words():
    """Gradients of the policy's loss are those of the flow loss for the action expert and those of the words for
    everything that reads; without insulation the flow loss reaches both."""
    net, params = examples.init(pi05_policy(INSULATED), KEY)
    plain, _ = functional.describe(pi05_policy(dataclasses.replace(INSULATED, insulation=None)))
    # The gates start at zero and shut the flow loss out of everything: open them.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    batch = batch_of(0.5 * jax.random.uniform(KEY, (B, words.H, words.A)))

    def words_alone(params):
        policy = net.bind(params)
        return token_losses(policy.backbone, policy.prefix(batch.observation), words.TEXT, batch)[0].mean()

    @jax.jit
    def gradients(params):
        losses = [lambda p, net=net: net.bind(p).loss(KEY, batch)[0].mean() for net in (net, plain)]
        return [jax.grad(loss)(params) for loss in (*losses, words_alone)]

    ours, flow, spoken = (dict(jax.tree_util.tree_flatten_with_path(g)[0]) for g in jax.device_get(gradients(params)))
    readers = 0
    for path, gradient in ours.items():
        name = jax.tree_util.keystr(path)
        reads = not any(part in name for part in ("suffix", "action_", "time_"))
        readers += reads
        np.testing.assert_allclose(gradient, (spoken if reads else flow)[path], atol=1e-5, err_msg=name)
        assert np.abs((spoken if reads else flow)[path]).max() > 0, name
        if reads and "prefix_norm" not in name:
            assert np.abs(flow[path]).max() > 0, name
    assert readers > 20


def test_insulation_needs_words_of_the_same_chunks_and_a_prefix_that_words_can_train():
    def build(config=INSULATED, **changes):
        functional.describe(lambda rngs: FlowPolicy(config, VlaTransformer(words.pi05_config(**changes), rngs), rngs))

    with pytest.raises(errors.ConfigError, match="writes no words"):
        build(with_text=False)
    with pytest.raises(errors.ConfigError, match="say other chunks"):
        build(dataclasses.replace(INSULATED, action_horizon=5))
    with pytest.raises(errors.ConfigError, match="train the state token"):
        build(state_token="suffix", state_text=None, adaptive_norm=False)
    with pytest.raises(errors.ConfigError, match="token_weight"):
        Insulation(words.TEXT, token_weight=0.0)


PUBLISHED = {
    "pi0": (lambda: pi0(CAMERAS), "concat"),
    "pi05": (lambda: pi05(CAMERAS), "adaptive_norm"),
}
CAMERAS = ("base", "left_wrist", "right_wrist")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_published_number_of_parameters(name):
    """So400m/14: patches 588 x 1152 + 1152, positions 256 x 1152, 27 layers, last norm, head 1152 x 2048 + 2048. Gemma:
    embedding 257152 x 2048, 18 layers of two norms, q 8 and k, v 1 heads of 256, out, three MLP matrices; the 300M
    expert likewise at width 1024 with its last norm. openpi's Gemma 2B also has a last norm, which pi0 does not use.
    """
    backbone, time_conditioning = PUBLISHED[name]
    config = FlowConfig(50, 32, time_conditioning=time_conditioning)
    _, params = functional.describe(lambda rngs: FlowPolicy(config, VlaTransformer(backbone(), rngs), rngs))
    w, m = 1152, 4304
    vision = 588 * w + w + 256 * w + 27 * (4 * (w * w + w) + 2 * w * m + m + w + 4 * w) + 2 * w + w * 2048 + 2048

    def expert(width, mlp, norm):
        return 18 * (2 * norm + width * 256 * (8 + 1 + 1) + 8 * 256 * width + 3 * width * mlp)

    plain, adaptive = 1024, 3 * (1024 * 1024 + 1024)
    norm = adaptive if name == "pi05" else plain
    suffix = expert(1024, 4096, norm) + norm
    heads = 32 * 1024 + 1024 + 1024 * 32 + 32  # actions in and out
    if name == "pi05":
        heads += 2 * (1024 * 1024 + 1024)  # time
    else:
        heads += 32 * 1024 + 1024 + 2048 * 1024 + 1024 + 1024 * 1024 + 1024  # state; actions with time
    expected = vision + 257152 * 2048 + expert(2048, 16384, 2048) + suffix + heads
    assert functional.count(params) == expected
    assert 3.2e9 < expected < 3.4e9
