"""What a user sees of the command line: errors with place and fix, exit codes, nothing half done."""

import pytest

from vla_jax import cli

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
