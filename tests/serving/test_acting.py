import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.serving import toy_policy
from vla_jax.codecs.bins import BinCodec
from vla_jax.core import errors
from vla_jax.nets.conv_film import ConvFilm
from vla_jax.policies.bins import BinsConfig
from vla_jax.policies.flow import FlowPolicy
from vla_jax.samplers.guided import GuidanceOptions
from vla_jax.serving.acting import BatchActor
from vla_jax.serving.keys import RequestReader
from vla_jax.training import trained


@pytest.fixture(scope="module")
def reader(policy):
    return RequestReader.of(policy, takes_previous=True)


@pytest.fixture(scope="module")
def actor(policy):
    actor = BatchActor(policy, (1, 4), guidance=GuidanceOptions(4, 4.0))
    assert actor.warm_up() > 0
    return actor


def requests(reader, count, **more):
    rng = np.random.default_rng(count)
    return [reader.read(toy_policy.observation(rng, seed=i, **more)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_row_is_what_the_policy_answers_alone(policy, reader, actor, count):
    asked = requests(reader, count)
    answered, seconds = actor.run(asked)
    assert seconds > 0 and len(answered) == count
    for i, (request, chunk) in enumerate(zip(asked, answered, strict=True)):
        assert chunk.shape == (toy_policy.HORIZON, toy_policy.ACTION_DIM)
        np.testing.assert_allclose(chunk, toy_policy.local_act(policy, request, i), rtol=1e-4, atol=1e-4)
    assert all(not np.allclose(answered[0], chunk, atol=1e-2) for chunk in answered[1:])


def test_a_row_does_not_depend_on_who_else_is_in_the_batch(reader, actor):
    first, *others = requests(reader, 4)
    together = actor.run([first, *others])[0][0]
    np.testing.assert_allclose(actor.run([*others, first])[0][3], together, rtol=1e-5, atol=1e-5)


def test_without_a_seed_every_answer_has_its_own_noise(reader, actor):
    message = toy_policy.observation(np.random.default_rng(0))
    one, two = (actor.run([reader.read(message)])[0][0] for _ in range(2))
    assert not np.allclose(one, two, atol=1e-2)


def held_to(rng, frozen, steps=4):
    return {"realtime/actions": rng.uniform(-1, 1, (steps, 3)).astype(np.float32), "realtime/frozen": frozen}


def test_a_guided_chunk_begins_with_what_is_frozen(reader, actor):
    rng = np.random.default_rng(5)
    message, held = toy_policy.observation(rng, seed=3), held_to(rng, 3)
    plain = actor.run([reader.read(message)])[0][0]
    guided = actor.run([reader.read({**message, **held})])[0][0]
    before, after = (np.abs(chunk[:3] - held["realtime/actions"][:3]).mean() for chunk in (plain, guided))
    assert after < 0.2 * before, (before, after)


def test_guided_rows_do_not_disturb_each_other(reader, actor):
    rng = np.random.default_rng(6)
    asked = [reader.read(toy_policy.observation(rng, seed=i, **held_to(rng, i))) for i in range(3)]
    alone = [actor.run([request])[0][0] for request in asked]
    np.testing.assert_allclose(actor.run(asked)[0], alone, rtol=1e-4, atol=1e-4)


def test_guidance_without_weight_is_the_plain_answer_with_the_same_noise(reader, policy):
    actor = BatchActor(policy, (1,), guidance=GuidanceOptions(4, 0.0))
    actor.warm_up()
    rng = np.random.default_rng(7)
    message = toy_policy.observation(rng, seed=3)
    plain = actor.run([reader.read(message)])[0][0]
    guided = actor.run([reader.read({**message, **held_to(rng, 2)})])[0][0]
    np.testing.assert_allclose(guided, plain, rtol=1e-5, atol=1e-5)


def test_a_row_that_is_not_finite_is_an_error_of_that_row_alone(policy, reader):
    poisoned = jax.tree.map(lambda leaf: leaf, policy.params)
    text = poisoned["backbone"]["text"]
    text["embedding"] = text["embedding"].at[ord("!") + 1].set(np.nan)
    actor = BatchActor(dataclasses.replace(policy, params=poisoned), (2,))
    actor.warm_up()
    rng = np.random.default_rng(0)
    good = toy_policy.observation(rng, seed=0)
    answered, _ = actor.run([reader.read(good), reader.read({**good, "prompt": "!"})])
    assert np.isfinite(answered[0]).all()
    assert isinstance(answered[1], errors.RequestError) and "NaN" in str(answered[1])


def test_weights_in_8_bits_answer_nearly_the_same(policy, reader, actor):
    small = BatchActor(policy.quantized(), (1,))
    small.warm_up()
    (request,) = requests(reader, 1)
    exact, rounded = (each.run([request])[0][0] for each in (actor, small))
    spread = np.std([chunk for chunk in actor.run(requests(reader, 4))[0]])
    assert 0 < np.abs(exact - rounded).mean() < 0.2 * spread


# --- what the device does ---------------------------------------------------------------------------------------------


def count_calls(monkeypatch, owner, name, calls):
    """Count runs of a method, not traces of it."""
    original = getattr(owner, name)

    def counted(self, *arguments, **options):
        jax.debug.callback(lambda: calls.append(name), ordered=False)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("guided", [False, True])
def test_pictures_and_prompt_are_encoded_once_and_read_at_every_flow_step(policy, reader, monkeypatch, guided):
    calls = []
    count_calls(monkeypatch, ConvFilm, "prefix", calls)
    count_calls(monkeypatch, FlowPolicy, "velocity", calls)
    actor = BatchActor(policy, (1,), guidance=GuidanceOptions(4, 4.0) if guided else None)
    actor.warm_up()
    jax.effects_barrier()
    calls.clear()
    rng = np.random.default_rng(8)
    actor.run([reader.read(toy_policy.observation(rng, seed=0, **(held_to(rng, 2) if guided else {})))])
    jax.effects_barrier()
    assert sorted(calls) == ["prefix", *["velocity"] * 4]  # the toy policy has 4 flow steps


def test_the_device_time_is_until_the_actions_are_back_not_until_the_call_returns(policy, reader, monkeypatch):
    """JAX's calls return before their results are there: a meter that stops then shows next to nothing."""
    original = FlowPolicy.prefix

    def slow(self, observation):
        start = jnp.eye(256) * observation.state.mean()
        busy = jax.lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), start).sum()
        return jax.tree.map(lambda leaf: leaf + (1e-30 * busy).astype(leaf.dtype), original(self, observation))

    monkeypatch.setattr(FlowPolicy, "prefix", slow)
    actor = BatchActor(policy, (1,))
    actor.warm_up()
    asked = requests(reader, 1)
    start = time.perf_counter()
    _, seconds = actor.run(asked)
    elapsed = time.perf_counter() - start
    assert elapsed > 0.03 and 0.7 * elapsed < seconds <= elapsed


def test_nothing_compiles_once_it_is_warm(policy, reader):
    actor = BatchActor(policy, (1, 4), guidance=GuidanceOptions(4, 4.0))
    actor.warm_up()
    compiled = []
    listener = lambda name, *_, **__: compiled.append(name) if "compile" in name else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        rng = np.random.default_rng(9)
        for count in (1, 2, 4):
            actor.run(requests(reader, count))
            actor.run([reader.read(toy_policy.observation(rng, seed=i, **held_to(rng, 2))) for i in range(count)])
        assert compiled == []
        jax.jit(lambda x: x + len(compiled))(1.0)  # a program nobody has compiled: the listener does hear
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_a_policy_without_a_velocity_cannot_be_guided(policy):
    codec = BinCodec(((-1.0, -0.5, 0.5, 1.0),) * (toy_policy.ACTION_DIM + 1))
    recipe = toy_policy.recipe(BinsConfig(toy_policy.HORIZON, codec))
    bins = dataclasses.replace(policy, recipe=recipe, learner=trained.make_learner(recipe))
    params = toy_policy.random_params(bins.constructor)
    with pytest.raises(errors.ConfigError, match="HasVelocity"):
        BatchActor(dataclasses.replace(bins, params=params), (1,), guidance=GuidanceOptions())


@pytest.mark.parametrize("sizes", [(), (0, 1)])
def test_impossible_batch_sizes_are_refused(policy, sizes):
    with pytest.raises(errors.ConfigError, match="batch_sizes"):
        BatchActor(policy, sizes)
