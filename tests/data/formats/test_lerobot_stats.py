import numpy as np

from vla_jax.data.formats import lerobot_stats


def test_numbers_of_one_episode():
    values = np.arange(101, dtype=np.float32)
    stats = lerobot_stats.of_numbers(np.stack([values, -values], axis=1))
    # 0 to 100: the quantile q is at 100 q; the variance of n consecutive integers is (n^2 - 1) / 12.
    assert stats["mean"].tolist() == [50, -50]
    np.testing.assert_allclose(stats["std"], np.sqrt((101**2 - 1) / 12))
    np.testing.assert_allclose([stats[name][0] for name in lerobot_stats.QUANTILES], [1, 10, 50, 90, 99])
    np.testing.assert_allclose(stats["q01"], [1, -99])
    assert (stats["min"].tolist(), stats["max"].tolist(), stats["count"].tolist()) == ([0, -100], [100, 0], [101])
    assert lerobot_stats.of_numbers(values)["mean"].shape == (1,)
    assert lerobot_stats.of_numbers(np.array([True, False, True, True]))["mean"].tolist() == [0.75]


def test_merged_episodes_have_the_moments_of_all_frames():
    rng = np.random.default_rng(0)
    parts = [rng.normal(i, 1 + i, (n, 3)) for i, n in enumerate((5, 1, 40))]
    merged = lerobot_stats.Merged(lerobot_stats.of_numbers(parts[0]))
    for part in parts[1:]:
        merged.add(lerobot_stats.of_numbers(part))
    found, whole = merged.result(), lerobot_stats.of_numbers(np.concatenate(parts))
    for name in ("mean", "std", "min", "max", "count"):
        np.testing.assert_allclose(found[name], whole[name], err_msg=name)
    expected = sum(len(p) * lerobot_stats.of_numbers(p)["q90"] for p in parts) / 46
    np.testing.assert_allclose(found["q90"], expected)


def test_pictures_are_measured_per_channel_between_0_and_1():
    levels = lerobot_stats.PictureStatistics()
    pictures = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), np.uint8)
    for picture in pictures:
        levels.add(picture)
    found = levels.result()
    flat = pictures.reshape(-1, 3) / 255
    for name, expected in {"mean": flat.mean(0), "std": flat.std(0), "min": flat.min(0), "max": flat.max(0)}.items():
        assert found[name].shape == (3, 1, 1)  # as lerobot wants them
        np.testing.assert_allclose(found[name][:, 0, 0], expected, err_msg=name)
    for name, q in lerobot_stats.QUANTILES.items():
        np.testing.assert_allclose(
            found[name][:, 0, 0], np.quantile(flat, q, axis=0, method="inverted_cdf"), err_msg=name
        )
    assert found["count"].tolist() == [6]


def test_sampled_frames_reach_from_the_first_to_the_last():
    assert lerobot_stats.sampled_frames(1) == {0}
    assert lerobot_stats.sampled_frames(5) == {0, 1, 2, 3, 4}
    many = lerobot_stats.sampled_frames(1000)
    assert len(many) == 32
    assert {0, 999} <= many
