"""The whole main job at the smallest size: every stage runs, leaves what it promises, and is not run twice."""

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
import rich.console

from recipes import tabletop_demo
from vla_jax import main_job
from vla_jax.core import errors
from vla_jax.envs.mjx.tabletop import TabletopConfig
from vla_jax.evaluation import results
from vla_jax.training.online import ReplayConfig


def shrink(recipe, **changes):
    evaluation = dataclasses.replace(
        recipe.evaluation, envs=(TabletopConfig("place", image_size=16),), num_episodes=4, batch_size=4
    )
    backbone = dataclasses.replace(recipe.policy.backbone, image_size=(16, 16), channels=4, hidden=16, feature_dim=8)
    decoder = dataclasses.replace(recipe.policy.decoder, num_flow_steps=2)
    policy = dataclasses.replace(recipe.policy, backbone=backbone, decoder=decoder)
    mesh = dataclasses.replace(recipe.fit.mesh, data=1)
    fit = dataclasses.replace(recipe.fit, num_train_steps=3, log_every=1, mesh=mesh)
    return dataclasses.replace(recipe, evaluation=evaluation, policy=policy, fit=fit, **changes)


def tiny_job(folder):
    job = tabletop_demo.job(str(folder))
    learner = dataclasses.replace(
        job.finetune.learner, num_critics=2, hidden_dims=(8, 8), num_base_samples=2, execution_horizon=4
    )
    optimizer = dataclasses.replace(job.imitation.optimizer, warmup_steps=1, decay_steps=3)
    return dataclasses.replace(
        job,
        data=dataclasses.replace(job.data, episodes_per_task=4, batch_size=8, image_size=16),
        imitation=shrink(job.imitation, optimizer=optimizer),
        finetune=shrink(job.finetune, learner=learner, replay=ReplayConfig(4, 64, 2, 2, 1, 8)),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    console = rich.console.Console(file=io.StringIO(), width=100)
    main_job.run(tiny_job(folder), console)
    return folder, console.file.getvalue()


def test_every_stage_is_announced_and_the_summary_has_both_rates(finished):
    _, shown = finished
    for title in ("1/6 scripted demonstrations", "4/6 online reinforcement learning", "6/6 films", "total"):
        assert title in shown
    assert shown.count("% [") == 2  # two rates with their intervals


def test_the_folder_holds_what_the_readme_promises(finished):
    folder, _ = finished
    for name in ("report.html", "picture.png", "imitation/metrics.jsonl", "finetune/checkpoints", "data/1.0.0"):
        assert (folder / name).exists(), name
    report = (folder / "report.html").read_text()
    assert "data:video" in report or "data:image" in report
    assert "http://" not in report.split("Manifest")[0] and "src='http" not in report


def test_the_lines_of_the_readme_run(finished, capsys):
    folder, _ = finished
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"## Ten lines\n\n```python\n(.*?)```", readme, re.DOTALL).group(1)
    exec(lines.replace("runs/demo/finetune", str(folder / "finetune")), {})
    assert capsys.readouterr().out.strip() == "(4, 4, 5)"


def test_both_evaluations_are_stored_with_the_same_initial_states(finished):
    folder, _ = finished
    entries = {entry.row: entry for entry in results.load(folder / "results" / "demo" / "run.json")}
    assert set(entries) == {"imitation", "fine_tuned"}
    assert entries["imitation"].records["initial_state"] == entries["fine_tuned"].records["initial_state"]
    assert entries["imitation"].manifest["recipe"]["name"] == "tabletop_demo/imitation"


def test_the_base_policy_is_the_imitation_policy_to_the_bit(finished):
    import jax
    import numpy as np

    from vla_jax.training import trained

    folder, _ = finished
    before, after = trained.load(folder / "imitation"), trained.load(folder / "finetune")
    jax.tree.map(np.testing.assert_array_equal, before.base_params, after.base_params)


def test_a_finished_job_is_not_run_again(finished):
    folder, _ = finished
    stamp = (folder / "finetune" / "metrics.jsonl").stat().st_mtime_ns
    console = rich.console.Console(file=io.StringIO(), width=100)
    main_job.run(tiny_job(folder), console)
    assert console.file.getvalue().count("done before") == 6
    assert (folder / "finetune" / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_a_missing_stage_alone_is_run_again(finished):
    folder, _ = finished
    (folder / "stages" / "imitation_evaluation.json").unlink()
    before = json.loads((folder / "stages" / "finetune.json").read_text())
    console = rich.console.Console(file=io.StringIO(), width=100)
    main_job.run(tiny_job(folder), console)
    assert console.file.getvalue().count("done before") == 5
    assert json.loads((folder / "stages" / "finetune.json").read_text()) == before


def test_another_job_in_the_same_folder_is_refused(finished):
    folder, _ = finished
    job = tiny_job(folder)
    other = dataclasses.replace(job, data=dataclasses.replace(job.data, seed=1))
    with pytest.raises(errors.ConfigError, match="other settings of data"):
        main_job.run(other, rich.console.Console(file=io.StringIO()))
