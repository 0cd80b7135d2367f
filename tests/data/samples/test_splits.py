import hashlib

from hypothesis import given
from hypothesis import strategies as st

from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.samples import splits

KEYS = [f"episode {i}" for i in range(2000)]


def test_the_hash_is_sha256():
    key = "success/2023-04-20/a"
    place = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
    assert splits.is_held_out([key], place + 1e-9).tolist() == [True]
    assert splits.is_held_out([key], place - 1e-9).tolist() == [False]


def test_the_fraction_is_met():
    # 2000 draws at 0.1: standard deviation sqrt(2000 * 0.1 * 0.9) = 13.4
    assert abs(splits.is_held_out(KEYS, 0.1).sum() - 200) < 5 * 13.4
    assert not splits.is_held_out(KEYS, 0.0).any() and splits.is_held_out(KEYS, 1.0).all()


@given(st.permutations(KEYS[:30]), st.integers(1, 30), st.floats(0, 1), st.floats(0, 1))
def test_an_episode_stays_on_its_side(keys, number, fraction, larger):
    fraction, larger = sorted((fraction, larger))
    found = dict(zip(keys[:number], splits.is_held_out(keys[:number], fraction), strict=True))
    everything = dict(zip(KEYS[:30], splits.is_held_out(KEYS[:30], fraction), strict=True))
    assert all(everything[key] == value for key, value in found.items())
    assert (splits.is_held_out(keys, larger) >= splits.is_held_out(keys, fraction)).all()


def test_episodes_go_by_their_recorded_names_where_they_have_them(toy):
    assert splits.episode_keys(RldsDataset(toy)) == tuple(f"file {i}" for i in range(4))


def test_without_names_the_place_in_the_set_counts_and_folders_do_not(toy_folder, tmp_path):
    names = ["action"]
    here = splits.episode_keys(RldsDataset(toy_folder, names=names))
    moved = tmp_path / "elsewhere" / "1.0.0"
    moved.parent.mkdir()
    moved.symlink_to(toy_folder)
    assert splits.episode_keys(RldsDataset(moved, names=names)) == here
    assert len(set(here)) == 4 and not any("/" in key for key in here)
