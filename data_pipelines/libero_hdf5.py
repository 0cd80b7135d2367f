"""The official LIBERO demonstrations (robomimic's HDF5 layout) as episodes, for those who have the files.

    data, attribute problem_info: JSON with language_instruction
    data/demo_i/{actions [t 7], states [t d]}
    data/demo_i/obs/{agentview_rgb, eye_in_hand_rgb [t h w 3] bottom row first; ee_states [t 6]; gripper_states [t 2];
                     joint_states [t 7]}

The published frames have 128 pixels a side. OpenVLA's sets have 256, drawn again by running the filtered actions from
the first stored state and keeping what succeeds; `rerender` does that. `stored_episodes` takes the frames as they are.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipelines import libero_records
from data_pipelines.libero_records import JPEG_QUALITY, LiberoEpisode
from vla_jax.core import errors
from vla_jax.envs import libero_sim
from vla_jax.envs.libero_sim import LiberoSim, encode_jpeg, rotate_180

_OBSERVATIONS = ("agentview_rgb", "eye_in_hand_rgb", "ee_states", "gripper_states", "joint_states")


def stored_episodes(path: Path) -> Iterator[LiberoEpisode]:
    """Every demonstration of a file with its own frames, no-ops left out. Raises DataError at another layout."""
    with h5py.File(path, "r") as file:
        instruction = _instruction(file, path)
        for name in _demonstrations(file, path):
            demo = file["data"][name]
            _require(demo, path)
            actions = np.asarray(demo["actions"], np.float32)
            keep = libero_records.keep_mask(actions)
            seen = {key: demo["obs"][key][:][keep] for key in _OBSERVATIONS}
            yield LiberoEpisode(
                file_path=f"{path.name}/{name}",
                instruction=instruction,
                images=_encode(seen["agentview_rgb"]),
                wrist_images=_encode(seen["eye_in_hand_rgb"]),
                state=np.concatenate([seen["ee_states"], seen["gripper_states"]], 1).astype(np.float32),
                joint_state=seen["joint_states"].astype(np.float32),
                actions=actions[keep],
                suite="",
                task=-1,
                init_state=np.zeros(0),  # of another MuJoCo: replaying it here proves nothing about this simulator
                scene_seed=0,
            )


def rerendered_episodes(path: Path, suite: str, sim: LiberoSim) -> Iterator[LiberoEpisode | None]:
    """Every demonstration drawn again by this simulator, None where its filtered actions do not succeed here."""
    task = _task_of(path, suite)
    with h5py.File(path, "r") as file:
        for name in _demonstrations(file, path):
            demo = file["data"][name]
            _require(demo, path)
            actions = np.asarray(demo["actions"], np.float32)
            actions = actions[libero_records.keep_mask(actions)]
            start = (suite, task.index, np.asarray(demo["states"][0], np.float64), 0, actions)
            succeeds = libero_records.replay(sim, *start)  # a tenth of the cost of drawing it
            yield libero_records.record(sim, *start, f"{path.name}/{name}") if succeeds else None


def _demonstrations(file: h5py.File, path: Path) -> list[str]:
    """Names in the order of their numbers; demo_10 comes after demo_9."""
    names = [name for name in file.get("data", {}) if re.fullmatch(r"demo_\d+", name)]
    if not names:
        raise errors.DataError(f"{path}", expected="groups data/demo_0, data/demo_1, ...", found=f"{sorted(file)}")
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _require(demo: h5py.Group, path: Path) -> None:
    wanted = ("actions", "states", *(f"obs/{key}" for key in _OBSERVATIONS))
    if missing := [key for key in wanted if key not in demo]:
        raise errors.DataError(
            f"{path}{demo.name}: not a LIBERO demonstration", expected=", ".join(wanted), found=f"no {missing}"
        )


def _instruction(file: h5py.File, path: Path) -> str:
    """From the file's attributes, or from its name as OpenVLA does."""
    described: Any = json.loads(file["data"].attrs.get("problem_info", "{}")) if "data" in file else {}
    if "language_instruction" in described:
        return "".join(described["language_instruction"]).strip().strip('"')
    words = path.stem.removesuffix("_demo").split("_")
    scene = next((i for i, word in enumerate(words) if word.startswith("SCENE")), -1)
    return " ".join(words[scene + 1 :])


def _task_of(path: Path, suite: str) -> libero_sim.Task:
    name = path.stem.removesuffix("_demo")
    tasks = {task.name: task for task in libero_sim.suite_tasks(suite)}
    if name not in tasks:
        raise errors.DataError(f"{path}: no task of {suite}", expected=errors.closest(name, tasks), found=name)
    return tasks[name]


def _encode(frames: np.ndarray) -> tuple[bytes, ...]:
    return tuple(encode_jpeg(rotate_180(frame), JPEG_QUALITY) for frame in frames)
