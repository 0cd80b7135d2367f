"""What is saved comes back as it was, anywhere; what does not fit says where."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.training import toy_learner as toy
from vla_jax.core import errors
from vla_jax.training import checkpoints, sharding
from vla_jax.training.checkpoints import Checkpoints, load_actor

SOURCE = {"position": 2**40, "ratio": 0.1, "done": True, "rows": np.arange(4, dtype=np.int64), "keys": None}


def _state(width=16):
    return toy.ToyLearner(width=width).init(jax.random.key(3), toy.ToyLoader().example())


def _save(store, step, state, source=None, **metrics):
    store.save(step, state, state.ema_params, source or {}, toy.METADATA, metrics)
    store.wait()


def _bits(tree):
    def bits(leaf):
        is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(int)), jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(bits, tree)


@pytest.fixture
def store(tmp_path):
    made = Checkpoints(tmp_path)
    yield made
    made.close()


def test_everything_comes_back_with_its_type(store):
    state = _state()
    state.params["out"]["kernel"] = state.params["out"]["kernel"].astype(jnp.bfloat16)
    source = {**SOURCE, "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    _save(store, 7, state, source)

    restored, restored_source = store.restore(7, jax.tree.map(jnp.zeros_like, state), source)
    jax.tree.map(np.testing.assert_array_equal, _bits(restored), _bits(state))
    assert restored.params["out"]["kernel"].dtype == jnp.bfloat16 and restored.key.dtype == state.key.dtype
    jax.tree.map(np.testing.assert_array_equal, _bits(restored_source), _bits(source))
    assert restored_source["keys"].dtype == source["keys"].dtype
    kinds = {name: type(value) for name, value in restored_source.items() if name != "keys"}
    assert kinds == {"position": int, "ratio": float, "done": bool, "rows": np.ndarray}
    assert restored_source["rows"].dtype == np.int64


def test_arrays_without_entries_come_back(store):
    state, source = _state(), {**SOURCE, "fixtures": jnp.zeros((3, 0, 2), jnp.int32)}
    state.params["out"]["nothing"] = jnp.zeros(0)
    _save(store, 7, state, source)
    restored, restored_source = store.restore(7, state, source)
    assert restored.params["out"]["nothing"].shape == (0,)
    assert restored_source["fixtures"].shape == (3, 0, 2) and restored_source["fixtures"].dtype == jnp.int32
    jax.tree.map(np.testing.assert_array_equal, _bits(restored), _bits(state))


def test_a_state_may_be_changed_as_soon_as_save_returns(store):
    state = {"params": jnp.arange(1000.0)}
    change = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    store.save(1, state, {}, {}, toy.METADATA)
    change(state)
    store.wait()
    np.testing.assert_array_equal(store.restore(1, {"params": jnp.zeros(1000)}, {})[0]["params"], np.arange(1000.0))


def test_what_the_actor_shares_is_written_once(store):
    state = _state()
    _save(store, 1, state)
    document = store.metadata(1)
    assert document["shared"]["ema_params/out/kernel"] == "out/kernel"
    stored = json.loads((store.folder / "1" / "learner" / "_METADATA").read_text())["tree_metadata"]
    assert not any("ema_params" in name for name in stored)


def test_a_checkpoint_restores_onto_another_mesh(store):
    state = _state()
    axes = {"hidden": {"kernel": ("embed", "mlp")}}
    meshes = [sharding.make_mesh(config) for config in (sharding.MeshConfig(1, 4, 2), sharding.MeshConfig(1, 2, 1))]
    split, other = (sharding.param_shardings(state, mesh, axes, fsdp_min_size=1) for mesh in meshes)
    _save(store, 1, jax.device_put(state, split))
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, other
    )
    restored, _ = store.restore(1, target, {})
    assert "fsdp" in other.params["hidden"]["kernel"].spec
    assert restored.params["hidden"]["kernel"].sharding.spec == other.params["hidden"]["kernel"].spec
    assert len(restored.params["hidden"]["kernel"].sharding.device_set) == 2
    jax.tree.map(np.testing.assert_array_equal, _bits(restored), _bits(state))


def test_the_actor_loads_without_the_rest(store, tmp_path):
    state = _state()
    _save(store, 3, state)
    for path in (tmp_path, store.folder, store.folder / "3"):
        params, metadata = load_actor(path)
        jax.tree.map(np.testing.assert_array_equal, params, state.ema_params)
    assert metadata["recipe"] == {"name": "toy"} and metadata["step"] == 3 and "jax" in metadata["versions"]

    mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 8))
    params, _ = load_actor(tmp_path, mesh=mesh, logical_axes={"hidden": {"kernel": (None, "mlp")}})
    assert params["hidden"]["kernel"].sharding.spec == P(None, "tensor")
    with pytest.raises(errors.CheckpointError, match="1 of 4 leaves differ"):
        load_actor(tmp_path, expected={**params, "out": {**params["out"], "bias": jnp.zeros(3)}})


def test_a_mismatch_is_a_table_of_the_leaves_that_differ(store):
    state = _state()
    _save(store, 1, state, SOURCE | {"keys": 1})
    wider = _state(width=32)
    renamed = wider.replace(params={"hidden": wider.params["hidden"], "head": wider.params["out"]})
    with pytest.raises(errors.CheckpointError) as caught:
        store.restore(1, renamed, SOURCE | {"keys": 1})
    lines = str(caught.value).splitlines()
    assert "the learner state is of another shape, 15 of 21 leaves differ" in lines[0]
    assert lines[1].split() == ["path", "expected", "found"]
    table = {line.split()[0]: line.split()[1:] for line in lines[2:-1]}
    assert table["params/head/bias"] == ["float32[2]", "-"] and table["params/out/bias"] == ["-", "float32[2]"]
    assert table["ema_params/out/kernel"] == ["float32[32,", "2]", "float32[16,", "2]"]
    assert "params/hidden/bias" in table and "key" not in table
    assert lines[-1].startswith("  fix ")

    with pytest.raises(
        errors.CheckpointError, match=r"the source state is of another shape(?s:.*)position +float +int"
    ):
        store.restore(1, state, SOURCE | {"keys": 1, "position": 1.0})


def test_long_tables_are_cut(store):
    _save(store, 1, _state())
    with pytest.raises(errors.CheckpointError, match=r"\.\.\. and 11 more"):
        store.restore(1, {str(number): jnp.zeros(2) for number in range(12)}, {})


def test_the_last_ones_and_the_best_one_are_kept(tmp_path):
    for mode, best in (("max", 2), ("min", 1)):
        store = Checkpoints(tmp_path / mode, max_to_keep=2, best_metric="eval/score", best_mode=mode)
        scores = {1: {"eval/score": 0.1}, 2: {"eval/score": 0.9}, 3: {}, 4: {"eval/score": float("nan")}, 5: {}}
        for step, metrics in scores.items():
            _save(store, step, _state(), **metrics)
        assert store.steps() == [best, 4, 5] and store.latest_step() == 5
        store.close()


def test_a_half_written_checkpoint_is_not_the_latest(store, tmp_path):
    state = _state()
    _save(store, 1, state)
    _save(store, 2, state)
    # What a killed save leaves behind.
    (store.folder / "2").rename(store.folder / "2.orbax-checkpoint-tmp")
    (store.folder / "2.orbax-checkpoint-tmp" / "metadata" / "metadata").unlink()
    again = Checkpoints(tmp_path)
    assert again.latest_step() == 1 and checkpoints.step_folder(tmp_path).name == "1"
    _save(again, 2, state)
    assert again.latest_step() == 2
    again.close()


def test_optimizer_states_with_holes_survive(store):
    params = {"kept": jnp.ones(2), "frozen": jnp.ones(3)}
    optimizer = optax.masked(optax.adam(1e-3), {"kept": True, "frozen": False})
    state = {"params": params, "opt_state": optimizer.init(params)}
    store.save(1, state, params, {}, toy.METADATA)
    restored, _ = store.restore(1, jax.tree.map(jnp.zeros_like, state), {})
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_missing_things_are_named(store, tmp_path):
    with pytest.raises(errors.CheckpointError, match="no complete checkpoint"):
        load_actor(tmp_path)
    with pytest.raises(errors.ConfigError, match=r"found +no normalization, cameras"):
        store.save(1, {}, {}, {}, {"recipe": {}, "action": {}})
    _save(store, 1, _state())
    with pytest.raises(errors.CheckpointError, match=r"no checkpoint of step 4\n.*\n  found +steps \[1\]"):
        load_actor(tmp_path, step=4)
    (store.folder / "1" / "metadata" / "metadata").unlink()
    with pytest.raises(errors.CheckpointError, match="not a checkpoint of vla_jax"):
        load_actor(tmp_path)


def test_metadata_is_plain_json():
    config = sharding.MeshConfig(data=1)
    mixed = {"mesh": config, "mean": np.array([0.5, 1.0], np.float32), "cameras": ("front", "wrist"), "n": np.int64(3)}
    assert checkpoints.plain(mixed) == {
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1, "fsdp_min_size": 2**16},
        "mean": [0.5, 1.0],
        "cameras": ["front", "wrist"],
        "n": 3,
    }
    with pytest.raises(errors.ConfigError, match="holds a function"):
        checkpoints.plain({"policy": lambda rngs: None})
