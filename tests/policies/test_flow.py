import jax
import jax.numpy as jnp
import optax
import pytest

from tests.nets import examples
from vla_jax.core import errors
from vla_jax.core.types import Demonstrations
from vla_jax.policies import base
from vla_jax.policies.flow import FlowConfig, FlowPolicy, sample_time

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


@pytest.mark.parametrize("changes", [dict(loss_samples=0), dict(time_distribution="beta"), dict(time_conditioning="x")])
def test_impossible_configs_are_rejected(changes):
    with pytest.raises(errors.ConfigError):
        FlowConfig(H, A, **changes)
