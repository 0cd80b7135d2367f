"""What a user sees of the command line: errors with place and fix, exit codes, nothing half done."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import tabletop
from tests.data.memory_set import clean_set, write_rlds
from tests.data_pipelines.test_tabletop import Line, go_right
from vla_jax import cli
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.normalization import Statistics
from vla_jax.data.open import open_dataset
from vla_jax.data.picture_sources import open_pictures
from vla_jax.data.pictures.image_cache import ImageCache
from vla_jax.data.schema import DatasetConfig

RECIPE = """
import dataclasses
from recipes import tabletop_demo
from vla_jax.training.recipe import Recipe

def quick() -> Recipe:
    return tabletop_demo.imitation({folder!r})

def wrong_width() -> Recipe:
    recipe = quick()
    decoder = dataclasses.replace(recipe.policy.decoder, action_dim=7)
    return dataclasses.replace(recipe, policy=dataclasses.replace(recipe.policy, decoder=decoder))
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE.format(folder=str(tmp_path)))
    return path


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, arguments)))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_closest(capsys):
    assert "did you mean 'train'" in fails(capsys, "trian")


def test_a_missing_recipe_file_lists_the_known_ones(capsys):
    message = fails(capsys, "train", "recipes/tabletop_dmo.py", "--run", "x")
    assert "did you mean 'recipes/tabletop_demo.py'" in message


def test_an_unknown_recipe_function_lists_the_known_ones(capsys, recipe):
    assert "known: quick, wrong_width" in fails(capsys, "train", f"{recipe}:slow", "--run", "x")


def test_a_missing_dataset_is_named_with_its_fix(capsys, recipe, tmp_path):
    message = fails(capsys, "train", recipe, "--run", tmp_path / "run")
    assert f"{tmp_path}/data/1.0.0: no dataset" in message and "vla-jax data generate" in message
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_is_named_with_its_fix(capsys, tmp_path):
    message = fails(capsys, "eval", tmp_path)
    assert "CheckpointError" in message and "no checkpoint" in message and "train first" in message


def test_an_impossible_override_is_refused(capsys, recipe):
    message = fails(capsys, "train", recipe, "--run", "x", "--evaluation.execution-horizon", "9")
    assert "at most policy.decoder.action_horizon = 8" in message and "found     9" in message


def test_an_unknown_field_is_refused(capsys, recipe):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(recipe), "--run", "x", "--optimizer.peak-lrr", "1"])
    assert caught.value.code == 2
    assert "peak-lr" in capsys.readouterr().err


def test_an_unknown_table_lists_the_known_ones(capsys):
    assert "did you mean 'demo'" in fails(capsys, "table", "dem")


def test_doctor_names_what_it_found(capsys):
    cli.main(["doctor"])
    shown = capsys.readouterr().out
    assert "jax" in shown and "python" in shown.lower()


def test_help_lists_every_command(capsys):
    cli.main([])
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("train", "eval", "compare", "table", "data", "doctor"))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return write_rlds(clean_set(num_episodes=3, num_steps=40), tmp_path_factory.mktemp("set") / "small" / "1.0.0")


@pytest.fixture
def data(small_set, tmp_path, monkeypatch, capsys):
    """Run `vla-jax data VERB small_set ...` and return what it printed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cli._console, "width", 200)

    def run(verb, *arguments):
        cli.main(["data", verb, str(small_set), *map(str, arguments)])
        return capsys.readouterr().out

    return run


def test_an_unknown_data_verb_is_answered_with_the_closest(capsys):
    assert "did you mean 'inspect'" in fails(capsys, "data", "inspct", "x")


def test_a_folder_without_a_dataset_is_named(capsys, tmp_path):
    for verb in ("inspect", "index", "stats", "view", "lint"):
        assert str(tmp_path) in fails(capsys, "data", verb, tmp_path)


def test_inspect_prints_quality_and_draws_a_sheet(data, tmp_path):
    shown = data("inspect", "--quality", "--g-min", 0, "--g-max", 2, "--sheet", tmp_path / "sheet.png")
    assert "3 episodes, 120 frames" in shown and "put the cup on the plate" in shown
    assert "trajectory quality (TQ)" in shown and "0.500" in shown  # every episode has a return of 1
    assert Image.open(tmp_path / "sheet.png").height == 3 * 148


def test_index_finds_every_frame(data):
    assert "3 episodes, 120 frames" in data("index")


def test_stats_are_those_of_the_columns(data, tmp_path):
    assert "over 120 frames" in data("stats", "--out", tmp_path / "statistics.json")
    actions = clean_set(num_episodes=3, num_steps=40).columns["action"]
    found = Statistics.load(tmp_path / "statistics.json").actions
    np.testing.assert_allclose(found.mean, actions.mean(0), atol=1e-5)


def test_stats_of_several_sets_are_those_of_all_frames(data, small_set):
    assert "over 240 frames" in data("stats", small_set)


def test_view_writes_one_page(data, tmp_path):
    data("view", "--out", tmp_path / "page.html", "--episodes", 1, "--pictures", 3)
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 6 and "Episode 1: put the cup on the plate" in text


def test_lint_is_quiet_about_a_clean_set_and_exits_with_1_on_errors(data, capsys):
    said = ("--gripper-action-dim", 6, "--gripper-state-dim", 6, "--larger-action-opens", "False")
    assert "nothing found" in data("lint", *said, "--action-kind", "delta")
    with pytest.raises(SystemExit) as caught:
        data("lint", *said, "--action-kind", "absolute")
    assert caught.value.code == 1 and "behave as delta" in capsys.readouterr().out


def test_convert_goes_there_and_back(data, tmp_path, small_set):
    pytest.importorskip("pyarrow")
    there, back = tmp_path / "lerobot", tmp_path / "back" / "1.0.0"
    assert "3 episodes, 120 frames" in data("convert", there, "--to", "lerobot", "--fps", 10, "--lossless")
    cli.main(["data", "convert", str(there), str(back), "--to", "rlds"])
    np.testing.assert_array_equal(RldsDataset(back).columns["action"], open_dataset(small_set).columns["action"])
    cli.main(["data", "inspect", str(there)])


def test_convert_to_lerobot_needs_a_frequency(capsys, small_set, tmp_path):
    message = fails(capsys, "data", "convert", small_set, tmp_path / "out", "--to", "lerobot")
    assert "give --fps" in message and not (tmp_path / "out").exists()


def test_cache_transcodes_every_picture_for_the_config_it_prints(data, tmp_path, small_set):
    shown = data("cache", tmp_path / "cached", "--size", 6, 8, "--format", "raw", "--fit", "stretch")
    assert "120 frames" in shown and "resize=(6, 8, 'stretch')" in shown
    cache = ImageCache(tmp_path / "cached")
    assert cache.image_shape("observation/front") == (6, 8, 3)
    assert json.loads((tmp_path / "cached" / "cache.json").read_text())["num_frames"] == 120
    cameras = (("front", "front"), ("wrist", "wrist"))
    config = DatasetConfig(str(small_set), 1, cameras, image_cache=str(tmp_path / "cached"), resize=(6, 8, "stretch"))
    assert open_pictures(open_dataset(small_set), config, keep_bytes=0)["front"].shape == (6, 8, 3)


def test_generate_writes_a_set_and_shows_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tabletop.TabletopDataConfig, "env", lambda self, task: Line())
    monkeypatch.setattr(tabletop, "expert", lambda env, state: go_right(state))
    options = ("--episodes-per-task", "2", "--batch-size", "4")
    cli.main(["data", "generate", "--out", str(tmp_path / "line" / "1.0.0"), *options])
    assert "2 episodes" in capsys.readouterr().out and len(RldsDataset(tmp_path / "line" / "1.0.0")) == 2
