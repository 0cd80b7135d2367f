"""Recorded actions run again in the simulator a set was made in: the strongest check of its actions there is.

LIBERO sets of ours keep simulator states beside them. A tabletop set keeps its config and the number of every attempt,
from which the episode's keys follow: its reset, and the noise that disturbed the robot while the clean action was
written. Other sets keep neither.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import tabletop
from data_pipelines.tabletop import TabletopDataConfig
from vla_jax.core import errors
from vla_jax.data.formats.rlds import RldsDataset, load_info
from vla_jax.data.lint.replay import Replay, ReplayOutcome
from vla_jax.envs import libero_sim
from vla_jax.envs.mjx.tabletop import Randomization
from vla_jax.evaluation import libero_replay

_FEATURES = tuple(f"episode_metadata/{name}" for name in ("task", "noise_std", "rollout"))
_SIMULATED = ("tabletop", "rollouts", "libero")  # how the names of sets begin that come from a simulator of ours


def replay_of(folder: str | Path, split: str = "train", num_episodes: int = 10) -> Replay | None:
    """What runs episodes of the set in `folder` again; None where it does not come from a simulator that is here."""
    if libero_replay.has_starts(folder):
        return functools.partial(_libero, folder, num_episodes)
    if not (Path(folder) / "dataset_info.json").is_file():
        return None
    info = load_info(folder)
    if info.name == "tabletop" and "config" in info.metadata:
        return functools.partial(replay_tabletop, folder, split, num_episodes)
    if info.name.startswith(_SIMULATED):
        return lambda: ReplayOutcome(reason=f"{info.name} keeps no initial simulator states")
    return None


def replay_tabletop(folder: str | Path, split: str = "train", num_episodes: int = 10) -> ReplayOutcome:
    """Run `num_episodes` episodes, spread over the set, again: the recorded actions under the noise they were recorded
    under. A set made by another version of the simulator fails here."""
    dataset = RldsDataset(folder, split, names=("action", *_FEATURES))
    config = _config(dataset.info.metadata["config"], str(folder))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num_episodes).round().astype(int))
    task_name, noise_name, rollout_name = _FEATURES
    tasks = np.array(dataset.texts(task_name))[np.asarray(dataset.text_ids(task_name))[chosen]]
    outcome = 0
    for task in dict.fromkeys(tasks.tolist()):
        episodes = chosen[tasks == task]
        rollouts = np.asarray(dataset.columns[rollout_name])[episodes].reshape(-1)
        episode_keys = [
            jax.random.split(tabletop.batch_key(config, task, int(n)), config.batch_size)[int(n) % config.batch_size]
            for n in rollouts
        ]
        env = config.env(task)
        noise = np.asarray(dataset.columns[noise_name], np.float32)[episodes].reshape(-1)
        actions, lengths = _padded(dataset, episodes, env.spec.episode_length)
        succeeded = jax.jit(jax.vmap(_runner(env)))(jnp.stack(episode_keys), actions, lengths, noise)
        outcome += int(np.asarray(succeeded).sum())
    return ReplayOutcome(outcome, len(chosen))


def _runner(env) -> Callable:
    def run(key, actions, length, noise_std):
        """Whether the recorded actions end in success at the step at which they did."""
        reset_key, _, noise_keys = tabletop.episode_keys(key, env.spec)

        def step(state, inputs):
            action, noise_key = inputs
            return env.step(state, tabletop.disturbed(action, noise_std, noise_key, env.spec)), None

        last, _ = jax.lax.scan(step, env.reset(reset_key), (actions, noise_keys))
        return last.success & (last.env_step == length)

    return run


def _padded(dataset: RldsDataset, episodes: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    starts, actions = np.asarray(dataset.episode_starts), dataset.columns["action"]
    lengths = starts[episodes + 1] - starts[episodes]
    padded = np.zeros((len(episodes), num_steps, actions.shape[1]), np.float32)
    for row, episode, length in zip(padded, episodes, lengths, strict=True):
        row[:length] = actions[starts[episode] : starts[episode + 1]]
    return padded, lengths.astype(np.int32)


def _config(stored: dict, place: str) -> TabletopDataConfig:
    try:
        return TabletopDataConfig(
            **{**stored, "tasks": tuple(stored["tasks"]), "randomization": Randomization(**stored["randomization"])}
        )
    except (KeyError, TypeError) as error:
        raise errors.DataError(
            f"{place}: metadata.json holds no config of this version", found=repr(error), fix="generate the set again"
        ) from error


def _libero(folder: str | Path, num_episodes: int) -> ReplayOutcome:
    try:
        libero_sim.require(backend=None)
    except errors.EnvError as error:  # the other checks are no worse for it
        return ReplayOutcome(reason=error.place, fix=error.fix)
    replays = libero_replay.replay_check(folder, num_episodes)
    return ReplayOutcome(sum(replay.success for replay in replays), len(replays))
