"""Cameras, on a sample of consecutive frames: missing, damaged, black, frozen, or two of the same."""

import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.sample import vectors
from vla_jax.data.lint.settings import LintConfig

_BLACK = 12  # brightest level of a black picture; JPEG leaves some noise
_FLAT = 1.5  # standard deviation of levels below which a picture shows nothing
_SAME = 1.0  # mean difference of levels of two cameras that show the same
_BAD_SHARE, _FROZEN_SHARE = 0.02, 0.2
_MOVES = 1e-3  # of the range of a state dim, per step


def check(dataset: EpisodeDataset, config: LintConfig, notes: Notes) -> None:
    """Decodes `picture_episodes` x `picture_frames` pictures per camera."""
    wanted = config.declared.cameras
    for name in wanted or ():
        if name not in dataset.cameras:
            notes.error("missing camera", f'the set has no camera "{name}"', errors.closest(name, dataset.cameras))
    cameras = tuple(name for name in wanted if name in dataset.cameras) if wanted else dataset.cameras
    frames = _sample(dataset, config)
    small: dict[str, UInt8[np.ndarray, "n h w 3"]] = {}
    for name in cameras:
        pictures = np.zeros((len(frames), *dataset.image_shape(name)), np.uint8)
        readable = dataset.read_images(frames, name, pictures)
        if not readable.all():
            notes.error(
                "damaged picture",
                f"{name}: {int((~readable).sum())} of {len(frames)} sampled pictures do not decode, the first is "
                f"{dataset.describe_frame(int(frames[(~readable).argmax()]))}",
                "copy the file again, or drop these episodes",
            )
        shown = pictures[readable]
        if len(shown) and not _is_empty(name, shown, notes):
            small[name] = pictures
            _check_frozen(dataset, name, frames, pictures, readable, config, notes)
    _check_twins(small, notes)
    notes.fact("cameras", ", ".join(f"{name} {list(dataset.image_shape(name)[:2])}" for name in cameras) or "none")


def _sample(dataset: EpisodeDataset, config: LintConfig) -> Int64[np.ndarray, "n"]:
    """Runs of consecutive frames from the middle of episodes spread over the set."""
    starts = np.asarray(dataset.episode_starts)
    episodes = np.unique(np.linspace(0, len(dataset) - 1, config.picture_episodes).round().astype(np.int64))
    runs = []
    for start, stop in zip(starts[episodes], starts[episodes + 1], strict=True):
        length = min(config.picture_frames, stop - start)
        first = start + (stop - start - length) // 2
        runs.append(np.arange(first, first + length))
    return np.concatenate(runs).astype(np.int64)


def _is_empty(name: str, pictures: UInt8[np.ndarray, "n h w 3"], notes: Notes) -> bool:
    """Note black and one-coloured pictures; True when most are."""
    flat = pictures.reshape(len(pictures), -1)
    black = flat.max(1) <= _BLACK
    plain = ~black & (pictures.std((1, 2)).max(1) < _FLAT)
    for check_name, is_bad in (("black camera", black), ("blank camera", plain)):
        share = is_bad.mean()
        if share > _BAD_SHARE:
            note = notes.error if share > 0.5 else notes.warning
            note(
                check_name,
                f"{name}: {share:.0%} of {len(pictures)} sampled pictures are "
                f"{'black' if check_name == 'black camera' else 'of one colour'}",
                "leave this camera out, make it optional (optional_cameras), or drop the episodes without it",
            )
    return bool((black | plain).mean() > 0.5)


def _check_frozen(
    dataset: EpisodeDataset,
    name: str,
    frames: Int64[np.ndarray, "n"],
    pictures: UInt8[np.ndarray, "n h w 3"],
    readable: Bool[np.ndarray, "n"],
    config: LintConfig,
    notes: Notes,
) -> None:
    """Pictures that repeat the one before them although the robot moves."""
    pairs = np.flatnonzero((np.diff(frames) == 1) & readable[1:] & readable[:-1])
    pairs = pairs[dataset.episode_of(frames[pairs]) == dataset.episode_of(frames[pairs + 1])]
    states = vectors(dataset, config.state_names, frames)
    if states.shape[1]:
        span = np.maximum(np.ptp(states, axis=0), 1e-12)
        pairs = pairs[(np.abs(states[pairs + 1] - states[pairs]) > _MOVES * span).any(1)]
    if len(pairs) == 0:
        return
    frozen = np.array([np.array_equal(pictures[i], pictures[i + 1]) for i in pairs])
    if frozen.mean() > _FROZEN_SHARE:
        note = notes.error if frozen.mean() > 0.9 else notes.warning
        note(
            "frozen camera",
            f"{name}: {frozen.mean():.0%} of {len(pairs)} sampled pictures repeat the one before while the robot "
            f"moves, for example {dataset.describe_frame(int(frames[pairs[frozen.argmax()] + 1]))}",
            "the camera is slower than the control loop or hangs: resample to its rate, or drop these episodes",
        )


def _check_twins(pictures: Mapping[str, UInt8[np.ndarray, "n h w 3"]], notes: Notes) -> None:
    for first, second in itertools.combinations(pictures, 2):
        one, other = pictures[first], pictures[second]
        if one.shape == other.shape and np.abs(one.astype(np.int16) - other).mean() < _SAME:
            notes.error(
                "same camera twice",
                f"{first} and {second} show the same in all {len(one)} sampled frames",
                "one of the two was recorded or converted under the wrong name: leave it out or convert again",
            )
