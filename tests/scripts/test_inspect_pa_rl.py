"""What the inspection of PA-RL's choices says about places of known worth."""

import jax
import jax.numpy as jnp
import numpy as np

from recipes import pa_rl_maze
from scripts import inspect_pa_rl
from scripts.reproduce_pa_rl import PROMPTS, make_learner


def test_returns_of_chunks_are_those_of_counting_steps(monkeypatch):
    study = pa_rl_maze.study()
    # whoever acts after the chunk goes up, into the wall, and stays there
    monkeypatch.setattr(inspect_pa_rl, "decide", lambda *_: jnp.broadcast_to(jnp.array([0.0, 1.0]), (3, 2, 2)))
    right, left = [1.0, 0.0], [-1.0, 0.0]
    chunks = jnp.array([[right, right], [left, right], [left, left]])
    env, learner = study.env.make(PROMPTS), make_learner(study, "pa_rl")
    place = jnp.array([0.55, 0.0])  # the block is on its left, the goal begins 0.13 to its right: two steps, one paid
    returns = inspect_pa_rl.true_returns(study, env, learner, {}, place, chunks, jax.random.key(0))
    never = -1 / (1 - study.learner.discount)
    np.testing.assert_allclose(returns, [-1.0, never, never], rtol=1e-5)


def test_running_gives_every_episode_an_end_inside_the_maze():
    study = pa_rl_maze.study()
    env, learner = study.env.make(PROMPTS), make_learner(study, "pa_rl")

    def shapes():
        actor = learner.actor(learner.init(jax.random.key(0)))
        return inspect_pa_rl.run.__wrapped__(env, learner, True, actor)

    success, last = jax.eval_shape(shapes)
    assert success.shape == (256,) and last.shape == (256, 2)
