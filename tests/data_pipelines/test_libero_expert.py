"""The expert against the real simulator; skipped where LIBERO cannot run."""

import numpy as np
import pytest

from data_pipelines.libero_expert import ExpertOptions
from vla_jax.core import errors
from vla_jax.envs import libero_sim


def _libero_problem() -> str | None:
    try:
        libero_sim.require(None)
    except errors.EnvError as error:
        return str(error)
    return None


needs_libero = pytest.mark.skipif(_libero_problem() is not None, reason=f"LIBERO cannot run here: {_libero_problem()}")


def test_expert_options_stay_in_their_ranges():
    with pytest.raises(errors.ConfigError, match="gain"):
        ExpertOptions(gain=4.0)


@needs_libero
def test_the_expert_succeeds_and_its_filtered_actions_do_again():
    from data_pipelines import libero_expert, libero_records

    sim = libero_sim.LiberoSim(None)
    start = sim.reset("libero_object", 1, None, scene_seed=100_000)
    actions, success = libero_expert.run(sim, ExpertOptions(), seed=0, limit=280)
    assert success and 60 < len(actions) < 200 and np.abs(actions).max() <= 1
    kept = actions[libero_records.keep_mask(actions)]
    assert libero_records.replay(sim, "libero_object", 1, start, 100_000, kept)
    sim.close()


@needs_libero
def test_tasks_that_need_other_skills_are_refused_by_name():
    from data_pipelines import libero_expert

    sim = libero_sim.LiberoSim(None, settle_steps=0)
    sim.reset("libero_goal", 0, 0)  # open the middle drawer of the cabinet
    with pytest.raises(errors.EnvError, match=r"open the middle drawer(.|\n)*open"):
        libero_expert.ScriptedExpert(sim, ExpertOptions(), np.random.default_rng(0))
    sim.close()
