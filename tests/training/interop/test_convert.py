"""Foreign weights become a checkpoint that acts, and go out again; what weights do not say has to be given."""

import json

import jax
import numpy as np
import pytest

from tests.training.interop import examples
from vla_jax.core import errors
from vla_jax.data.normalization import Statistics
from vla_jax.training import checkpoints, trained
from vla_jax.training.checkpoints import flatten
from vla_jax.training.interop import compare, convert, layouts, transfer
from vla_jax.training.interop.safetensors import Safetensors

NAMES = dict(action_names=("dx", "grip"), control_hz=15.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """openpi's pi0 as a run of ours."""
    folder = tmp_path_factory.mktemp("run")
    source = convert.open_source(examples.openpi_folder("pi0", folder), "openpi")
    statistics = examples.statistics()
    report, differences = convert.import_checkpoint(
        source, examples.recipe("pi0"), "openpi", folder / "run", statistics, **NAMES
    )
    assert not report.of("missing", "mismatched", "unexpected", "fresh")
    assert len(differences) == 49 and compare.Difference.worst(differences).relative < 1e-6
    return folder / "run"


def test_an_imported_checkpoint_loads_and_knows_what_it_was_given(run):
    policy = trained.load(run)
    assert policy.metadata["action"] == {"names": ["dx", "grip"], "horizon": 5, "control_hz": 15.0}
    assert policy.metadata["imported"]["layout"] == "openpi"
    assert policy.edges.normalizer.robot_action_dim == 2
    shapes = jax.tree.map(lambda leaf: leaf.shape, policy.params)
    assert shapes["time_in"]["kernel"] == (32, 16)


def test_export_gives_the_same_weights_in_another_layout(run, tmp_path):
    files = convert.export_checkpoint(run, "lerobot", tmp_path)
    assert [file.name for file in files] == ["model.safetensors"]
    layout = layouts.layout("lerobot", examples.backbone("pi0"), examples.flow("pi0"))
    params = trained.load(run).base_params
    assert compare.Difference.worst(transfer.verify(Safetensors(tmp_path), layout, params)).relative == 0
    contract = json.loads((tmp_path / "vla_jax_contract.json").read_text())
    assert contract["action"]["names"] == ["dx", "grip"]


def test_export_in_bfloat16_rounds_and_halves(run, tmp_path):
    whole = convert.export_checkpoint(run, "lerobot", tmp_path / "whole")
    half = convert.export_checkpoint(run, "lerobot", tmp_path / "half", dtype=jax.numpy.bfloat16)
    assert half[0].stat().st_size < 0.6 * whole[0].stat().st_size
    layout = layouts.layout("lerobot", examples.backbone("pi0"), examples.flow("pi0"))
    worst = compare.Difference.worst(
        transfer.verify(Safetensors(tmp_path / "half"), layout, trained.load(run).base_params)
    )
    assert 0 < worst.relative <= 2**-8  # bfloat16 keeps 8 bits


def test_a_tower_fills_its_part_and_the_rest_starts_anew(tmp_path):
    recipe = examples.recipe("pi0", vision=examples.vision(24))
    source = convert.open_source(examples.FIXTURES / "paligemma", "paligemma")
    convert.import_checkpoint(source, recipe, "paligemma", tmp_path, examples.statistics(), **NAMES)
    params = flatten(trained.load(tmp_path).params)
    stored = source.read("language_model.model.layers.1.mlp.up_proj.weight").astype(np.float32)
    np.testing.assert_array_equal(params["backbone/mixture/prefix_layers/up/kernel"][1], stored.T)
    anew = params["backbone/mixture/suffix_layers/up/kernel"]
    assert anew.shape == (2, 16, 32) and 0.1 < float(anew.std()) < 0.4  # normal of 1 / sqrt(16)


def test_a_run_folder_is_not_written_into(run):
    source = convert.open_source(examples.FIXTURES / "siglip", "siglip")
    with pytest.raises(errors.CheckpointError, match="has checkpoints already"):
        convert.import_checkpoint(source, examples.recipe("pi0"), "siglip", run, examples.statistics(), **NAMES)


def test_statistics_and_names_have_to_fit_before_anything_is_written(tmp_path):
    source = convert.open_source(examples.FIXTURES / "siglip", "siglip")
    recipe = examples.recipe("pi0", vision=examples.vision(24))
    with pytest.raises(errors.ConfigError, match="names of the actions"):
        convert.import_checkpoint(
            source, recipe, "siglip", tmp_path, examples.statistics(), action_names=("dx",), control_hz=None
        )
    with pytest.raises(errors.ConfigError, match="state_dim"):
        convert.import_checkpoint(source, recipe, "siglip", tmp_path, examples.statistics(state_dim=5), **NAMES)
    assert not (tmp_path / checkpoints.FOLDER).exists()


def test_statistics_of_openpi_are_read(tmp_path):
    file = tmp_path / "norm_stats.json"
    side = {"mean": [0.5, 1], "std": [1, 2], "q01": [-1, -2], "q99": [3, 4]}
    file.write_text(json.dumps({"norm_stats": {"state": side, "actions": side}}))
    found = convert.read_statistics(file)
    assert found.actions.q99 == (3.0, 4.0) and found.state.mean == (0.5, 1.0) and found.state.count == 0
    file.write_text(json.dumps({"norm_stats": {"state": side, "actions": side | {"q01": None}}}))
    with pytest.raises(errors.DataError, match=r"norm_stats\.actions"):
        convert.read_statistics(file)
    examples.statistics().save(file)
    assert convert.read_statistics(file) == Statistics.load(file)


def test_unknown_layouts_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(errors.ConfigError, match="did you mean 'openpi'"):
        convert.open_source(tmp_path, "openpy")
