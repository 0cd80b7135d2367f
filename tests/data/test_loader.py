import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import rich_rlds
from tests.data.toy_rlds import CAMERAS, LENGTHS, STATE_DIM
from vla_jax.core.errors import ConfigError, DataError
from vla_jax.data import loader as loader_module
from vla_jax.data.demonstrations import DemonstrationDataset, compute_statistics
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.loader import Loader
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.data.samples.order import GlobalOrder
from vla_jax.data.schema import DatasetConfig

NUM_FRAMES = sum(LENGTHS)
RAW = NormalizationConfig(mode="none")
CAMERA_PAIRS = (("main", "front"), ("wrist", "wrist"))


def tokenizer(text: str):
    """Two tokens: the last character of the instruction, then padding."""
    return np.array([int(text[-1]), 0]), np.array([True, False])


def toy_config(folder, **changes) -> DatasetConfig:
    values = dict(action_horizon=3, cameras=CAMERA_PAIRS, displacement_dims=(0, 1, 2))
    return DatasetConfig(path=str(folder), **{**values, **changes})


def make_loader(folder, config=None, **changes) -> Loader:
    config = config or toy_config(folder)
    values = dict(
        batch_size=6, seed=3, tokenizer=tokenizer, normalizer=Normalizer.create(compute_statistics(config), RAW)
    )
    return Loader(config, **{**values, **changes})


def frames_of(batch) -> list[tuple[int, int]]:
    """(episode, step) of every row: the toy state says both."""
    return [(int(row[0]), int(row[1])) for row in batch.observation.state]


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_holds_what_the_dataset_holds(toy):
    config = toy_config(toy)
    dataset = DemonstrationDataset(config, Normalizer.create(compute_statistics(config), RAW), tokenizer)
    batch = dataset.batch(np.array([3, 5, 0]))  # episode 0 step 3 of 5, the one step of episode 1, episode 0 step 0
    assert frames_of(batch) == [(0, 3), (1, 0), (0, 0)]
    rlds = RldsDataset(toy)
    for row, frame in enumerate((3, 5, 0)):
        np.testing.assert_array_equal(batch.observation.images["main"][row], rlds.image(frame, "observation/front"))
        np.testing.assert_array_equal(batch.observation.images["wrist"][row], rlds.image(frame, "observation/wrist"))
    assert batch.observation.prompt.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert batch.observation.prompt_mask.tolist() == [[True, False]] * 3
    # Toy action: 100 * episode + step + 0.25 * dim. Past the end displacements are 0 and the gripper holds.
    expected = np.array([[3, 3.25, 3.5, 3.75], [4, 4.25, 4.5, 4.75], [0, 0, 0, 4.75]], np.float32)
    np.testing.assert_array_equal(batch.actions[0], expected)
    assert batch.action_mask[:, :, 0].tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert batch.weight.tolist() == [1, 1, 1]
    assert batch.observation.image_mask["main"].all()


def test_leaves_have_the_documented_types(toy_folder):
    batch = make_loader(toy_folder).example()
    assert isinstance(batch.actions, np.ndarray)
    observation = batch.observation
    for camera, (_, key) in zip(("main", "wrist"), CAMERA_PAIRS, strict=True):
        assert observation.images[camera].shape == (6, *CAMERAS[key], 3)
        assert observation.images[camera].dtype == np.uint8
    assert (observation.state.shape, observation.state.dtype) == ((6, STATE_DIM), np.float32)
    assert (observation.prompt.dtype, observation.prompt_mask.dtype) == (np.int32, bool)
    assert (batch.actions.dtype, batch.action_mask.shape, batch.weight.dtype) == (np.float32, (6, 3, 4), np.float32)


def test_a_history_adds_a_time_axis_and_masks_what_was_not_seen(toy_folder):
    config = toy_config(toy_folder, history=2)
    dataset = DemonstrationDataset(config, Normalizer.create(compute_statistics(config), RAW), tokenizer)
    batch = dataset.batch(np.array([5, 7]))  # the first of episode 1 and the second of episode 2
    assert batch.observation.state[:, :, :2].tolist() == [[[1, 0], [1, 0]], [[2, 0], [2, 1]]]
    assert batch.observation.images["main"].shape == (2, 2, *CAMERAS["front"], 3)
    assert batch.observation.image_mask["wrist"].tolist() == [[False, True], [True, True]]
    assert batch.observation.prompt.shape == (2, 2)  # one prompt per example, history or not


def test_unused_action_dims_are_zero_and_masked(toy_folder):
    config = toy_config(toy_folder, action_dim=6)
    batch = make_loader(toy_folder, config).example()
    assert batch.actions.shape == (6, 3, 6)
    assert not batch.actions[..., 4:].any() and not batch.action_mask[..., 4:].any()


def test_states_join_in_the_order_of_their_keys(toy_folder):
    config = toy_config(toy_folder, state_keys=("state", "state"))
    statistics = compute_statistics(config)
    assert statistics.state.dim == 2 * STATE_DIM
    state = make_loader(toy_folder, config).example().observation.state
    np.testing.assert_array_equal(state[:, :STATE_DIM], state[:, STATE_DIM:])


def test_numbers_are_normalized_by_the_statistics(toy_folder):
    config = toy_config(toy_folder)
    normalizer = Normalizer.create(compute_statistics(config))
    loader, raw = make_loader(toy_folder, normalizer=normalizer), make_loader(toy_folder)
    a, b = loader.batch(4), raw.batch(4)
    np.testing.assert_allclose(a.actions, normalizer.normalize_actions(b.actions), rtol=1e-6)
    np.testing.assert_allclose(a.observation.state, normalizer.normalize_state(b.observation.state), rtol=1e-6)


def test_every_epoch_is_a_permutation_and_no_two_are_alike(toy_folder):
    loader = make_loader(toy_folder, batch_size=NUM_FRAMES)
    epochs = [frames_of(next(loader)) for _ in range(5)]
    loader.close()
    everything = {(e, t) for e, length in enumerate(LENGTHS) for t in range(length)}
    assert all(set(epoch) == everything and len(epoch) == NUM_FRAMES for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    start_step=st.integers(0, 500),
    process_count=st.sampled_from([1, 2, 3, 6]),
    num_threads=st.integers(1, 4),
)
def test_the_stream_is_a_function_of_seed_and_step_alone(toy_folder, seed, start_step, process_count, num_threads):
    whole = make_loader(toy_folder, seed=seed)
    parts = [
        make_loader(
            toy_folder,
            seed=seed,
            process_index=i,
            process_count=process_count,
            num_threads=num_threads,
            start_step=start_step,
        )
        for i in range(process_count)
    ]
    for step in range(start_step, start_step + 3):
        pieces = [next(part) for part in parts]
        assert_equal(jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces), whole.batch(step))
    assert {part.state()["step"] for part in parts} == {start_step + 3}
    for part in parts:
        part.close()


@pytest.mark.parametrize("image_cache_bytes", [0, 1 << 20])
def test_resuming_from_the_step_continues_the_stream(toy, image_cache_bytes):
    loader = make_loader(toy, image_cache_bytes=image_cache_bytes)
    batches = [next(loader) for _ in range(7)]
    assert loader.state() == {"step": 7}
    loader.restore({"step": 4})
    for step in (4, 5, 6):
        assert_equal(next(loader), batches[step])
    loader.close()
    resumed = make_loader(toy, start_step=6)
    assert_equal(next(resumed), batches[6])
    resumed.close()


def test_the_example_does_not_advance_the_stream(toy_folder):
    loader, other = make_loader(toy_folder), make_loader(toy_folder)
    loader.example()
    assert loader.state() == {"step": 0}
    assert_equal(next(loader), next(other))
    loader.close()
    other.close()


def test_kept_pictures_equal_decoded_ones(toy):
    kept, decoded = make_loader(toy), make_loader(toy, image_cache_bytes=0)
    for step in range(6):
        assert_equal(kept.batch(step), decoded.batch(step))


def test_closing_ends_the_threads(toy_folder):
    before = set(threading.enumerate())
    loader = make_loader(toy_folder, num_threads=3)
    next(loader)
    started = set(threading.enumerate()) - before
    assert started
    loader.close()
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)


def test_a_mixture_gives_each_dataset_its_share(toy_folder, tmp_path, write_toy):
    folders = (toy_folder, write_toy(tmp_path / "other", "tfrecord"))
    loader = make_loader(
        toy_folder,
        [toy_config(folder) for folder in folders],
        normalizer=Normalizer.create(compute_statistics(toy_config(toy_folder)), RAW),
        weights=(0.25, 0.75),
        batch_size=16,
    )
    order = GlobalOrder([NUM_FRAMES, NUM_FRAMES], 3, (0.25, 0.75))
    datasets, frames = order(0, 16)
    assert datasets.tolist().count(1) == 12
    batch = loader.batch(0)
    for row, (number, frame) in enumerate(zip(datasets, frames, strict=True)):
        single = loader.datasets[number].batch(np.array([frame]))
        assert_equal(jax.tree.map(lambda leaf, r=row: leaf[r], batch), jax.tree.map(lambda leaf: leaf[0], single))


def test_a_mixture_can_be_evened_out_and_balanced(toy_folder, rich_folder, tmp_path, write_toy):
    """Toy sets have 16 frames each; two of robot "a" and one of "b" share the stream in halves."""
    folders = (toy_folder, write_toy(tmp_path / "one"), write_toy(tmp_path / "two", "tfrecord"))
    configs = [toy_config(folder, embodiment=name) for folder, name in zip(folders, "aab", strict=True)]
    normalizer = Normalizer.create(compute_statistics(configs[0]), RAW)
    balanced = make_loader(toy_folder, configs, normalizer=normalizer, balance_embodiments=True)
    assert balanced.weights == (0.25, 0.25, 0.5)
    tempered = make_loader(toy_folder, configs, normalizer=normalizer, weights=(1.0, 4.0, 4.0), temperature=2.0)
    assert tempered.weights == pytest.approx((0.2, 0.4, 0.4))


def test_every_dataset_may_have_its_own_normalizer(toy_folder, tmp_path, write_toy):
    configs = [toy_config(toy_folder), toy_config(write_toy(tmp_path / "other"))]
    raw = Normalizer.create(compute_statistics(configs[0]), RAW)
    own = Normalizer.create(compute_statistics(configs[0]))
    loader = make_loader(toy_folder, configs, normalizer=[raw, own], batch_size=32)
    batch, (numbers, frames) = loader.batch(0), GlobalOrder([NUM_FRAMES] * 2, 3)(0, 32)
    for number, normalizer in enumerate((raw, own)):
        rows = np.flatnonzero(numbers == number)
        single = DemonstrationDataset(configs[number], normalizer, tokenizer).batch(frames[rows])
        np.testing.assert_array_equal(batch.actions[rows], single.actions)
    with pytest.raises(ConfigError, match="one, or 2, one per dataset"):
        make_loader(toy_folder, configs, normalizer=[raw])


def test_the_validation_side_is_another_loader(toy_folder):
    config = toy_config(toy_folder, holdout=0.5)
    sides = [make_loader(toy_folder, config, subset=subset, batch_size=16) for subset in ("train", "validation")]
    episodes = [{episode for episode, _ in frames_of(side.batch(0))} for side in sides]
    assert episodes[0] | episodes[1] == {0, 1, 2, 3} and not episodes[0] & episodes[1]
    assert sum(side.num_frames for side in sides) == NUM_FRAMES


def test_draws_follow_the_position_in_the_stream(rich_folder):
    """Whatever the processes and threads: the camera drawn for a row of the global batch is the same."""
    config = DatasetConfig(
        str(rich_folder),
        2,
        (("any", ("left", "right")),),
        state_keys=("joints",),
        action_key="action_dict/joints",
        instruction_key=("language_instruction", "language_instruction_3"),
        sample_by="episode",
    )

    def ends(text):
        return np.array([len(text), 0]), np.array([True, False])

    options = dict(tokenizer=ends, batch_size=12)
    whole = make_loader(rich_folder, config, **options).batch(5)
    parts = [make_loader(rich_folder, config, process_index=i, process_count=3, **options).batch(5) for i in range(3)]
    assert_equal(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), whole)
    threaded = make_loader(rich_folder, config, num_threads=5, start_step=5, **options)
    assert_equal(next(threaded), whole)
    threaded.close()
    greys = whole.observation.images["any"][:, 0, 0, 0]
    assert (greys < 80).any() and (greys > 80).any()


class Fails(Exception):
    pass


@pytest.fixture
def failing(toy_folder, monkeypatch):
    """A loader whose third batch cannot be made."""
    loader = make_loader(toy_folder, num_threads=2)
    (dataset,) = loader.datasets
    fill = dataset.fill
    third = set(GlobalOrder([NUM_FRAMES], 3)(12, 18)[1].tolist())

    def fill_or_fail(out, rows, frames, keys):
        if set(frames.tolist()) <= third and len(frames) == 3 and failures:
            raise Fails("here")
        fill(out, rows, frames, keys)

    failures = [True]
    monkeypatch.setattr(dataset, "fill", fill_or_fail)
    return loader, failures


def test_a_thread_that_fails_stops_the_run_with_its_traceback(failing):
    loader, failures = failing
    batches = []
    with pytest.raises(Fails, match="here") as error:
        for _ in range(3):
            batches.append(next(loader))
    assert "fill_or_fail" in {entry.name for entry in error.traceback}
    assert loader.state() == {"step": len(batches)}
    failures.clear()  # after the cause is gone the same loader goes on
    assert_equal(next(loader), loader.batch(len(batches)))
    loader.close()


def test_a_batch_that_does_not_come_is_an_error_and_not_a_hang(toy_folder, monkeypatch):
    loader = make_loader(toy_folder, num_threads=1)
    release = threading.Event()
    monkeypatch.setattr(loader.datasets[0], "fill", lambda *_: release.wait(10))
    monkeypatch.setattr(loader_module, "BATCH_TIMEOUT", 0.05)
    monkeypatch.setattr(loader_module, "_CLOSE_TIMEOUT", 0.05)
    with pytest.raises(DataError, match="batch 0 did not come"):
        next(loader)
    release.set()


def test_only_a_few_batches_are_made_ahead(toy_folder, monkeypatch):
    loader = make_loader(toy_folder, num_threads=4)
    made = []
    begin = loader._begin
    monkeypatch.setattr(loader, "_begin", lambda step: made.append(step) or begin(step))
    for step in range(5):
        next(loader)
        assert made == list(range(len(made)))  # in order
        assert step < len(made) <= step + 1 + loader_module.PREFETCH + 2  # and two in the hands of grain
    loader.close()


def test_damage_is_counted_batch_by_batch(tmp_path):
    folder = rich_rlds.write(tmp_path / "rich" / "1.0.0", damaged={("wrist", 2), ("wrist", 9)})
    config = DatasetConfig(
        str(folder), 2, (("wrist", "wrist"),), state_keys=("joints",), action_key="action_dict/joints"
    )
    loader = make_loader(folder, config, batch_size=14, tokenizer=lambda text: (np.zeros(1), np.ones(1, bool)))
    for _ in range(3):  # every epoch meets both
        batch = next(loader)
        assert sorted(batch.observation.state[batch.weight == 0, 0].tolist()) == [2, 9]
        assert loader.metrics() == {"data/faults": 2.0}
    assert {fault.kind for fault in loader.faults} == {"bad image"} and len(loader.faults) == 2
    loader.close()


def test_a_missing_camera_is_explained(toy_folder):
    with pytest.raises(DataError) as error:
        make_loader(toy_folder, toy_config(toy_folder, cameras=(("main", "wrist_image"),)), normalizer=None)
    assert str(error.value).splitlines() == [
        f'{toy_folder}: no key "steps/observation/wrist_image"',
        "  expected  image, asked for by cameras=(('main', 'wrist_image'),)",
        "  found     steps/observation/front, steps/observation/wrist",
        "  fix       did you mean 'observation/wrist'? Known: observation/front, observation/wrist",
    ]


def test_a_key_of_another_kind_is_explained(toy_folder):
    with pytest.raises(DataError, match=r"(?s)of another kind.*tensor, asked for by action_key.*found\s+image"):
        compute_statistics(toy_config(toy_folder, action_key="observation/front"))


def test_statistics_of_another_robot_are_refused(toy_folder):
    other = Normalizer.create(compute_statistics(toy_config(toy_folder, state_keys=("state", "state"))))
    with pytest.raises(DataError, match=r"(?s)statistics are of other data.*6 state dims.*found\s+3 and 4"):
        make_loader(toy_folder, normalizer=other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7, "process_count": 2}, "multiple of 2"),
        ({"process_index": 2, "process_count": 2}, "0 to 1"),
        ({"num_threads": 0}, "num_threads"),
        ({"weights": (1.0, 2.0)}, "1 positive numbers"),
        ({"seed": -1}, "32-bit"),
    ],
)
def test_impossible_values_are_refused(toy_folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_loader(toy_folder, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_horizon": 0}, "at least 1"),
        ({"cameras": (("a", "front"), ("a", "wrist"))}, "once"),
        ({"action_dim": 3}, "at least the robot's 4"),
        ({"displacement_dims": (4,)}, "below 4"),
    ],
)
def test_impossible_configs_are_refused(toy_folder, changes, message):
    normalizer = Normalizer.create(compute_statistics(toy_config(toy_folder)))
    with pytest.raises(ConfigError, match=message):
        make_loader(toy_folder, toy_config(toy_folder, **changes), normalizer=normalizer)
