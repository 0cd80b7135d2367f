import pytest

from vla_jax import cli, cli_plan
from vla_jax.core import errors


def test_a_mesh_is_read_and_filled_up():
    assert cli_plan.parse_mesh("data=2,fsdp=-1", 16) == (2, 8, 1)
    assert cli_plan.parse_mesh("fsdp=4, tensor=4", 16) == (1, 4, 4)


@pytest.mark.parametrize("text", ["fsdp=3", "fdsp=16", "fsdp=x", "data=32,fsdp=-1", "fsdp=0", ""])
def test_meshes_that_do_not_make_the_slice_are_refused(text):
    with pytest.raises(errors.ConfigError, match="--mesh"):
        cli_plan.parse_mesh(text, 16)


def test_a_token_budget_counts_patches_prompt_and_actions():
    recipe = cli.load_recipe("recipes/pi0_droid.py:paper")
    assert cli_plan.tokens_per_sample("recipes/pi0_droid.py:paper", recipe) == 2 * 256 + 48 + 16
    assert cli_plan.tokens_per_sample("reference:llama3.1-8b", None) == 8192


def test_the_command_names_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "recipes/pi0_droid.py:paper", "--topology", "v9:4x4"])
    assert "no chip 'v9'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["plan", "reference:llama9", "--topology", "v5e:4x4"])
    assert "no reference transformer 'llama9'" in capsys.readouterr().err
