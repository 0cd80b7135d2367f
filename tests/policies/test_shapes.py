"""The shapes written in the signatures are the shapes that flow, checked by beartype while JAX traces."""

import subprocess
import sys

PROGRAM = """
import jax, jaxtyping
with jaxtyping.install_import_hook(
    ["vla_jax.nets", "vla_jax.policies", "vla_jax.samplers", "vla_jax.losses", "vla_jax.codecs"], "beartype.beartype"
):
    from tests.nets import examples
    from vla_jax.codecs.bins import uniform_bins
    from vla_jax.core import functional
    from vla_jax.core.types import Demonstrations
    from vla_jax.policies.bins import BinsConfig, BinsPolicy
    from vla_jax.policies.diffusion import DiffusionConfig, DiffusionPolicy
    from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig, DiscreteDiffusionPolicy
    from vla_jax.policies.flow import FlowConfig, FlowPolicy
    from vla_jax.policies.gaussian import GaussianConfig, GaussianPolicy
    from vla_jax.policies.regression import RegressionConfig, RegressionPolicy
import jax.numpy as jnp

key, (h, a, b) = jax.random.key(0), (4, 2, 3)
batch = Demonstrations(
    examples.observation(key, b), jnp.zeros((b, h, a)), jnp.ones((b, h, a), bool), jnp.ones(b)
)
for backbone in examples.BACKBONES:
    for constructor in (
        lambda rngs: FlowPolicy(FlowConfig(h, a, loss_samples=2), backbone(h, False, rngs), rngs),
        lambda rngs: FlowPolicy(FlowConfig(h, a, time_conditioning="adaptive_norm"), backbone(h, True, rngs), rngs),
        lambda rngs: BinsPolicy(BinsConfig(h, uniform_bins(a, 5)), backbone(h * a, False, rngs), rngs),
        lambda rngs: DiffusionPolicy(DiffusionConfig(h, a), backbone(h, False, rngs), rngs),
        lambda rngs: GaussianPolicy(GaussianConfig(h, a), backbone(h, False, rngs), rngs),
        lambda rngs: RegressionPolicy(RegressionConfig(h, a), backbone(h, False, rngs), rngs),
        lambda rngs: DiscreteDiffusionPolicy(
            DiscreteDiffusionConfig(h, uniform_bins(a, 5)), backbone(h * a, False, rngs), rngs
        ),
    ):
        net, params = functional.describe(constructor)
        loss, _ = jax.eval_shape(lambda p: net.bind(p).loss(key, batch), params)
        samples = jax.eval_shape(lambda p: net.bind(p).sample(key, batch.observation, 5), params)
        features = jax.eval_shape(lambda p: net.bind(p).features(net.bind(p).prefix(batch.observation)), params)
        assert loss.shape == (b,) and samples.shape == (5, b, h, a) and features.ndim == 2
        if "conv" in backbone.__name__:
            wrong_prefix, tokens = jnp.zeros((b, 16, 1)), jnp.zeros((b, 4, 8))
            try:
                jax.eval_shape(lambda p: net.bind(p).backbone.suffix(wrong_prefix, tokens), params)
            except jaxtyping.TypeCheckError:
                continue
            raise SystemExit("a prefix of another rank went unnoticed")
print("shapes hold")
"""


def test_signatures_hold_for_every_policy_on_every_backbone():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert "shapes hold" in done.stdout, done.stderr[-3000:]
