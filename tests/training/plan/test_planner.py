"""Plans from end to end with the CPU compiler, and what follows from a compiled program without one."""

import json

import pytest

from recipes import serl_pick_cube
from tests.training.plan import small_recipe
from vla_jax.core import errors, functional
from vla_jax.training.plan import planner, report, worker
from vla_jax.training.plan.chips import parse_topology

GIB = 2**30


@pytest.fixture(scope="module")
def recipe():
    return small_recipe.quick()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


def plan_of(recipe, cache, **options):
    options = {"compiler": "cpu", "cache": cache, "timeout_s": 240} | options
    return planner.plan(recipe, parse_topology("h100:4"), (1, 4, 1), **options)


def test_a_plan_of_a_small_recipe_on_virtual_devices(recipe, cache):
    plan = plan_of(recipe, cache)
    params = functional.count(functional.describe(recipe.policy.constructor())[1])
    # float32 over 4 devices; what does not divide stays whole on each.
    assert params <= plan.memory.parameters < 1.2 * params
    assert plan.memory.optimizer == pytest.approx(2 * plan.memory.parameters, rel=0.01)  # two moments
    assert plan.memory.averages == plan.memory.parameters
    assert plan.fits and plan.microbatches == 1
    assert plan.model_flops < 1.4 * plan.step_flops < 2 * plan.model_flops
    assert 0.5 * plan.step_flops < plan.compiled_flops < 4 * plan.step_flops
    kinds = {traffic.kind for traffic in plan.collectives}
    assert "all-gather" in kinds and kinds & {"all-reduce", "reduce-scatter"}
    assert 0 < plan.utilization < 1
    assert plan.days() == pytest.approx(20 * plan.time.total / 86400)
    assert plan.days(2 * 8) == pytest.approx(2 * plan.time.total / 86400)

    again = plan_of(recipe, cache)
    assert again.seconds[1] == plan.seconds[1]  # remembered, not compiled
    assert again.time == plan.time

    stored = json.loads(json.dumps(report.to_json([plan])))[0]
    assert stored["memory"]["parameters"] == plan.memory.parameters and stored["fits"] is True
    text = report.details(plan)
    assert "| all-gather |" in text and "h100:4" in text


def test_a_batch_that_does_not_split_is_named_by_the_worker(recipe, cache):
    with pytest.raises(errors.ConfigError, match="divisible by data \\* fsdp = 4"):
        plan_of(recipe, cache, batch_size=6)


def test_a_compilation_that_takes_too_long_is_ended(recipe, cache):
    with pytest.raises(errors.TrainingError, match="within 0 s"):
        plan_of(recipe, cache, timeout_s=0.3)


def test_gpus_have_no_compiler_here(recipe, cache):
    with pytest.raises(errors.ConfigError, match="--compiler cpu"):
        plan_of(recipe, cache, compiler="tpu")


def fake_answers(monkeypatch, tmp_path, temporary):
    """A worker that compiles nothing: one product, and memory that depends on the mesh and the parts."""
    hlo = tmp_path / "module.hlo"
    lines = [
        "ENTRY %main (a: f32[2]) -> f32[2] {",
        "  %a = f32[2]{0} parameter(0)",
        "  ROOT %b = f32[2]{0} negate(%a)",
        "}",
    ]
    hlo.write_text("\n".join(lines))

    def answer(request: worker.Request, timeout_s: float):
        parts = request.program["learner"]["microbatches"]
        size = temporary(request.mesh, parts)
        facts = {"too_large": "used 20G of 16G"} if size is None else {"temporary": size, "program": 0}
        return {
            "name": "fake", "num_train_steps": 10, "model_flops": 1e15, "step_flops": 1e15, "lower_seconds": 0.0,
            "state": {"parameters": GIB, "optimizer": 2 * GIB, "averages": GIB, "batch": 0},
            "coordinates": [(x, y, 0) for x in range(4) for y in range(4)], "hlo": str(hlo), "versions": {},
            "kernels": {}, "kernel_idle": 1.0, "passes": 3, **facts,
        }  # fmt: skip

    monkeypatch.setattr(worker, "compile_request", answer)


def test_a_sweep_puts_what_fits_first(recipe, monkeypatch, tmp_path):
    # With one part only the most sharded mesh leaves the margin; the compiler gives up on the least sharded one.
    sizes = {(1, 1): 10 * GIB, (1, 2): 5 * GIB, (4, 1): None, (4, 2): 11 * GIB}
    fake_answers(monkeypatch, tmp_path, lambda mesh, parts: sizes[mesh[0], parts])
    seen = []
    plans = planner.sweep(
        recipe, parse_topology("v5e:4x4"), [(1, 16, 1), (4, 4, 1)], (1, 2), done=seen.append, batch_size=32
    )
    assert [(plan.mesh[0], plan.microbatches) for plan in seen] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert [plan.fits for plan in plans] == [True, False, False, False]  # 14 of 14.9 GiB is within the margin
    assert (plans[0].mesh[0], plans[0].microbatches) == (1, 2)
    too_large = next(plan for plan in plans if plan.time is None)
    assert "too much" in report.table([too_large]) and "used 20G" in report.details(too_large)
    assert json.loads(json.dumps(report.to_json(plans)))[-1]["note"] == "used 20G of 16G"


def test_candidates_are_meshes_over_all_chips_that_divide_the_batch():
    assert list(planner.candidates(8, 4)) == []  # 4 samples cannot be split over 8 chips
    assert list(planner.candidates(8, 16)) == [(1, 8, 1), (2, 4, 1), (4, 2, 1), (8, 1, 1)]
    assert list(planner.candidates(8, 4, tensor=(2,))) == [(1, 4, 2), (2, 2, 2), (4, 1, 2)]


def test_learners_of_values_are_refused_before_anything_compiles():
    with pytest.raises(errors.ConfigError, match="learner whose batches are demonstrations"):
        planner.plan(serl_pick_cube.quick(), parse_topology("v5e:2x2"), (4, 1, 1), compiler="cpu", microbatches=2)
