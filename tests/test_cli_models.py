"""`vla-jax import` and `export` as a user meets them."""

import pytest
import rich.console

from tests.training.interop import examples
from vla_jax import cli
from vla_jax.training import trained

RECIPE = """
from tests.training.interop import examples
from vla_jax.training.recipe import Recipe

def quick() -> Recipe:
    return examples.recipe("pi0")
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_console", rich.console.Console(width=300, highlight=False))  # so that no line is folded
    (tmp_path / "mine.py").write_text(RECIPE)
    examples.statistics().save(tmp_path / "statistics.json")
    source = examples.openpi_folder("pi0", tmp_path)
    return ["import", source, tmp_path / "run", "--layout", "openpi", "--recipe", tmp_path / "mine.py"]


def run(*arguments):
    cli.main(list(map(str, arguments)))


def test_import_then_export(arguments, tmp_path, capsys):
    given = ["--statistics", tmp_path / "statistics.json", "--action-names", "dx", "grip", "--control-hz", "15"]
    run(*arguments, *given)
    shown = capsys.readouterr().out
    assert "49 matched, 1 unused" in shown and "imported as recipe tiny_pi0" in shown
    assert trained.load(tmp_path / "run").metadata["action"]["control_hz"] == 15
    run("export", tmp_path / "run", tmp_path / "out", "--layout", "lerobot", "--dtype", "bfloat16")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_dry_run_reports_and_writes_nothing(arguments, tmp_path, capsys):
    run(*arguments, "--dry-run", "--everything")
    assert "PaliGemma/llm/layers/mlp/linear" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_what_weights_do_not_say_is_asked_for(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "no --statistics and no --action-names" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
