"""Every defect is planted in a clean set, and exactly its finding appears."""

import dataclasses

import numpy as np
import pytest

from tests.data.memory_set import MemorySet, clean_set
from vla_jax.core import errors
from vla_jax.data.lint import frames
from vla_jax.data.lint.checks import lint
from vla_jax.data.lint.replay import ReplayOutcome
from vla_jax.data.lint.settings import Declared, LintConfig

DECLARED = Declared(
    state_dim=7, action_dim=7, action_kind="delta", gripper_action_dim=6, gripper_state_dim=6, larger_action_opens=False
)
CONFIG = LintConfig(declared=DECLARED)
STATE, ACTION, WORDS = "observation/state", "action", "language_instruction"


@pytest.fixture
def dataset() -> MemorySet:
    return clean_set()


def declared(**changes) -> LintConfig:
    return dataclasses.replace(CONFIG, declared=dataclasses.replace(DECLARED, **changes))


def found(dataset, config=CONFIG, run_again=None):
    return [(finding.check, finding.severity) for finding in lint(dataset, config, run_again=run_again).findings]


def test_a_clean_set_has_no_finding_and_its_facts_are_right(dataset):
    report = lint(dataset, CONFIG)
    assert report.findings == () and not report.has_errors
    assert "0 is a movement of state 0" in report.facts["actions"] and "gain 0.05" in report.facts["actions"]
    assert report.facts["gripper command"] == "values -1, 1"
    assert report.facts["gripper direction"] == "a larger command closes"
    assert report.facts["instructions"] == "2 different ones in 12 episodes"
    assert report.facts["control frequency"] == "unknown"
    # Chunks of 16 in 60 frames: the last 15 lack 1 to 15 steps, 120 of 60 * 16.
    assert report.facts["chunks"].startswith("12.5%")


def test_a_clean_set_of_absolute_actions_has_no_finding(dataset):
    states = dataset.columns[STATE]
    dataset.columns[ACTION][:, :6] = np.roll(states, -1, axis=0)[:, :6]
    dataset.columns[ACTION][dataset.episode_starts[1:] - 1, :6] = states[dataset.episode_starts[1:] - 1, :6]
    report = lint(dataset, declared(action_kind="absolute"))
    assert report.findings == () and "0 is a target of state 0" in report.facts["actions"]
    assert found(dataset) == [("action kind", "error")]  # declared delta


def test_delta_actions_declared_absolute_are_found(dataset):
    assert found(dataset, declared(action_kind="absolute")) == [("action kind", "error")]


def test_a_target_among_movements_is_found(dataset):
    dataset.columns[ACTION][:, 2] = np.roll(dataset.columns[STATE], -1, axis=0)[:, 2]
    assert found(dataset, declared(action_kind=None)) == [("mixed kinds", "warning")]


def test_swapped_dims_are_found(dataset):
    dataset.columns[ACTION][:, [0, 1]] = dataset.columns[ACTION][:, [1, 0]]
    (finding,) = lint(dataset, CONFIG).findings
    assert finding.check == "swapped dims" and "action dims [0, 1]" in finding.fix


def test_a_flipped_sign_is_found(dataset):
    dataset.columns[ACTION][:, 4] *= -1
    (finding,) = lint(dataset, CONFIG).findings
    assert (finding.check, finding.severity) == ("sign", "error") and "action 4" in finding.reason


def test_an_action_that_moves_nothing_is_found(dataset):
    dataset.columns[ACTION][:, 3] = np.random.default_rng(1).uniform(-1, 1, dataset.num_frames)
    assert found(dataset) == [("unexplained action", "warning")]


def test_actions_recorded_a_step_late_are_found(dataset):
    rng, steps = np.random.default_rng(2), dataset.lengths[0]
    actions = rng.uniform(-1, 1, (len(dataset), steps, 6))  # independent from step to step, or a shift hardly shows
    states = np.cumsum(0.05 * actions, axis=1) - 0.05 * actions
    dataset.columns[STATE][:, :6] = states.reshape(-1, 6)
    dataset.columns[ACTION][:, :6] = actions.reshape(-1, 6)
    assert found(dataset) == []
    dataset.columns[ACTION][:, :6] = np.roll(actions, 1, axis=1).reshape(-1, 6)
    assert found(dataset) == [("late actions", "error")]


def test_actions_whose_sum_leaves_the_states_are_found(dataset):
    rng, steps = np.random.default_rng(2), dataset.lengths[0]
    actions = rng.uniform(-1, 1, (len(dataset), steps, 6))
    dataset.columns[ACTION][:, :6] = actions.reshape(-1, 6)
    dataset.columns[STATE][:, :6] = (np.cumsum(0.05 * actions, axis=1) - 0.05 * actions).reshape(-1, 6)
    dataset.columns[ACTION][:, 1] += 0.5  # a bias does not show in any correlation
    assert found(dataset) == [("actions do not integrate", "warning")]


def test_translations_in_the_frame_of_the_tool_are_found():
    dataset = clean_set(num_episodes=20)
    rng, steps = np.random.default_rng(3), dataset.lengths[0]
    actions = dataset.columns[ACTION].reshape(20, steps, 7)
    states = dataset.columns[STATE].reshape(20, steps, 7).astype(np.float64)
    states[..., 3:6] += rng.uniform(-1.5, 1.5, (20, 1, 3))
    turns = frames.rotations_of_vectors(states[..., 3:6].reshape(-1, 3))
    moved = 0.05 * np.einsum("nij,nj->ni", turns, actions[..., :3].reshape(-1, 3)).reshape(20, steps, 3)
    states[..., :3] = np.cumsum(moved, axis=1) - moved
    dataset.columns[STATE][:] = states.reshape(-1, 7)
    (finding,) = lint(dataset, CONFIG).findings
    assert (finding.check, finding.severity) == ("action frame", "error") and "rotation vector" in finding.reason


def test_a_gripper_that_works_the_other_way_is_found(dataset):
    dataset.columns[ACTION][:, 6] *= -1
    assert found(dataset) == [("gripper sign", "error")]
    assert found(dataset, declared(larger_action_opens=None)) == []


def test_episodes_with_different_gripper_conventions_are_found(dataset):
    dataset.columns[ACTION][:120, 6] *= -1
    (finding,) = lint(dataset, CONFIG).findings
    assert finding.check == "gripper convention differs" and "in 2 of 12 episodes" in finding.reason


def test_a_gripper_command_out_of_range_is_found(dataset):
    dataset.columns[ACTION][:, 6] *= 100
    assert found(dataset) == [("gripper range", "warning")]


def test_numbers_that_are_not_finite_are_found_with_their_place(dataset):
    dataset.columns[ACTION][70, 2] = np.nan
    (finding,) = lint(dataset, CONFIG).findings
    assert (finding.check, finding.severity) == ("not finite", "error") and "episode 1, step 10" in finding.reason


def test_declared_widths_are_compared(dataset):
    assert found(dataset, declared(state_dim=8)) == [("declared dims", "error")]
    assert found(dataset, declared(action_dim=6)) == [("declared dims", "error")]


def test_a_constant_dim_is_found(dataset):
    dataset.columns[ACTION][:, 5] = 0.25
    (finding,) = lint(dataset, CONFIG).findings
    assert finding.check == "constant dim" and "action dim 5 is 0.25" in finding.reason


def test_an_outlier_is_found_with_its_place(dataset):
    dataset.columns[STATE][130, 6] = 3.0
    (finding,) = lint(dataset, CONFIG).findings
    assert finding.check == "outlier" and "state dim 6 reaches 3" in finding.reason
    assert "episode 2, step 10" in finding.reason


def test_episodes_shorter_than_a_chunk_are_found(dataset):
    assert found(dataset, dataclasses.replace(CONFIG, action_horizon=61)) == [("short episodes", "error")]
    starts = [*range(0, 60, 10), *range(60, dataset.num_frames, 60), dataset.num_frames]
    dataset.lengths = tuple(np.diff(starts).tolist())  # the first episode falls into six of 10 steps
    (finding,) = lint(dataset, CONFIG).findings
    assert (finding.check, finding.severity) == ("short episodes", "warning") and "6 of 17" in finding.reason


def test_idle_frames_are_found(dataset):
    for start in dataset.episode_starts[:-1]:
        dataset.columns[ACTION][start : start + 20, :6] = 0
        dataset.columns[STATE][start : start + 21] = dataset.columns[STATE][start + 21]
        dataset.columns[ACTION][start : start + 20, 6] = dataset.columns[ACTION][start, 6]
    report = lint(dataset, dataclasses.replace(CONFIG, declared=dataclasses.replace(DECLARED, gripper_state_dim=None)))
    # 19 of 59 steps: the first of an episode has nothing before it, the last no successor.
    assert [finding.check for finding in report.findings] == ["still frames"]
    assert report.facts["still frames"] == "32.2%"


def test_timestamps_give_the_frequency_or_contradict_the_declared_one(dataset):
    stamps = np.tile(np.arange(60) / 15, len(dataset))
    dataset.columns["observation/timestamp"] = stamps
    assert lint(dataset, declared(control_hz=15.0)).findings == ()
    assert lint(dataset, CONFIG).facts["control frequency"] == '15 Hz, from "observation/timestamp"'
    assert found(dataset, declared(control_hz=10.0)) == [("control frequency", "error")]
    dataset.columns["observation/timestamp"] = stamps * 1e9
    assert found(dataset, declared(control_hz=15.0)) == [("timestamp unit", "warning")]
    dataset.columns["observation/timestamp"] = np.where(np.arange(len(stamps)) == 30, 0, stamps)
    assert found(dataset) == [("timestamps", "error")]
    uneven = np.tile(np.cumsum(np.where(np.arange(60) % 5 == 0, 3, 1) / 15), len(dataset))
    dataset.columns["observation/timestamp"] = uneven
    assert found(dataset) == [("uneven steps", "warning")]


def test_instructions_that_say_nothing_are_found(dataset):
    assert found(dataset, dataclasses.replace(CONFIG, instruction_name="task")) == [("no instructions", "error")]
    words = dataset.words[WORDS]
    dataset.words[WORDS] = [" ", *words[1:]]  # what counts is what an episode begins with
    assert found(dataset) == [("empty instruction", "warning")]
    dataset.words[WORDS] = [""] * len(words)
    assert found(dataset) == [("empty instruction", "error")]
    dataset.words[WORDS] = ["pick"] * 60 + words[60:]
    assert found(dataset) == [("one-word instruction", "warning")]


def test_an_instruction_that_is_hardly_shown_is_found():
    dataset = clean_set(num_episodes=45)
    dataset.words[WORDS][:60] = ["pick up the read cube"] * 60
    assert found(dataset) == [("rare instruction", "warning")]


def test_a_camera_that_is_declared_must_be_there(dataset):
    assert found(dataset, declared(cameras=("observation/front",))) == []
    (finding,) = lint(dataset, declared(cameras=("observation/fornt", "observation/wrist"))).findings
    assert finding.check == "missing camera" and "did you mean 'observation/front'" in finding.fix


@pytest.mark.parametrize(("level", "check"), [(3, "black camera"), (90, "blank camera")])
def test_a_camera_that_shows_nothing_is_found(dataset, level, check):
    dataset.pictures["observation/wrist"][:] = level
    assert found(dataset) == [(check, "error")]
    dataset = clean_set()
    dataset.pictures["observation/wrist"][:60] = level  # in one of 12 episodes
    assert found(dataset) == [(check, "warning")]


def test_a_frozen_camera_is_found(dataset):
    front = dataset.pictures["observation/front"]
    front[1::2] = front[::2]
    assert found(dataset) == [("frozen camera", "warning")]
    front[:] = front[dataset.episode_starts[dataset.episode_of(np.arange(len(front)))]]
    assert found(dataset) == [("frozen camera", "error")]


def test_a_camera_may_stand_still_while_the_robot_does(dataset):
    front = dataset.pictures["observation/front"]
    for start in dataset.episode_starts[:-1]:
        front[start + 20 : start + 30] = front[start + 20]
        dataset.columns[STATE][start + 20 : start + 30] = dataset.columns[STATE][start + 20]
    assert "frozen camera" not in [check for check, _ in found(dataset)]


def test_two_names_for_one_camera_are_found(dataset):
    dataset.pictures["observation/wrist"] = dataset.pictures["observation/front"].copy()
    assert found(dataset) == [("same camera twice", "error")]


def test_damaged_pictures_are_found_with_their_place(dataset):
    dataset.damaged = frozenset([30])
    report = lint(dataset, CONFIG)
    assert [finding.check for finding in report.findings] == ["damaged picture"] * 2  # of either camera
    assert "episode 0, step 30" in report.findings[0].reason


def test_a_replay_that_fails_is_an_error_and_one_that_cannot_be_run_is_not(dataset):
    assert found(dataset, run_again=lambda: ReplayOutcome(10, 10)) == []
    assert found(dataset, run_again=lambda: ReplayOutcome(5, 10)) == [("replay", "error")]
    assert found(dataset, run_again=lambda: ReplayOutcome(reason="no initial state")) == [("replay", "warning")]


def test_a_missing_feature_is_named(dataset):
    with pytest.raises(errors.DataError, match="did you mean 'action'"):
        lint(dataset, dataclasses.replace(CONFIG, action_names=("acton",)))


def test_a_large_set_is_sampled_in_whole_episodes(dataset):
    report = lint(dataset, dataclasses.replace(CONFIG, max_frames=300))
    assert report.findings == ()


def test_euler_angles_turn_about_fixed_axes():
    # A quarter about x takes y to z; then a quarter about z leaves z alone: y -> z. x -> x -> y.
    turn = frames.rotations_of_euler(np.array([[np.pi / 2, 0, np.pi / 2]]))[0]
    np.testing.assert_allclose(turn @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(turn @ [1, 0, 0], [0, 1, 0], atol=1e-12)
