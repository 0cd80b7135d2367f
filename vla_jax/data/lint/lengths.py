"""How long episodes are beside an action chunk, and how often nothing is done."""

import numpy as np
from jaxtyping import Bool

from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.sample import Sample
from vla_jax.data.lint.settings import LintConfig

_SHORT_SHARE = 0.05  # of the episodes
_STILL_SHARE = 0.2  # of the frames
_STILL = 1e-3  # of what a dim usually does (the 99th percentile of its size)


def check_chunks(dataset: EpisodeDataset, config: LintConfig, notes: Notes) -> None:
    lengths, horizon = np.diff(np.asarray(dataset.episode_starts)), config.action_horizon
    cut = np.minimum(lengths, horizon - 1)  # the chunks that reach past the end: with 1, 2, ..., `cut` real steps
    share = (cut * (2 * horizon - 1 - cut) / 2).sum() / (lengths.sum() * horizon)
    notes.fact("episodes", f"{len(lengths):,} of {lengths.min()} to {lengths.max()} frames")
    notes.fact("chunks", f"{share:.1%} of the steps of chunks of {horizon} lie past the end of their episode")
    short = int((lengths < horizon).sum())
    reason = f"{short:,} of {len(lengths):,} episodes are shorter than a chunk of {horizon} steps"
    fix = "choose a shorter action_horizon, or drop these episodes"
    if short == len(lengths):
        notes.error("short episodes", reason, fix)
    elif short > _SHORT_SHARE * len(lengths):
        notes.warning("short episodes", reason, fix)


def check_stillness(sample: Sample, config: LintConfig, notes: Notes) -> None:
    """A frame in which the action neither moves the arm nor differs from the one before it."""
    rows = sample.steps(1)
    if len(rows) == 0:
        return
    still = is_still(sample, config.declared.gripper_action_dim)[rows]
    share = still.mean()
    notes.fact("still frames", f"{share:.1%}")
    if share > _STILL_SHARE:
        notes.warning(
            "still frames",
            f"{share:.0%} of the frames ask for no movement ({int(still.sum()):,} of {len(rows):,})",
            "drop idle stretches (kept_frames of the dataset's config), or the policy learns to wait",
        )


def is_still(sample: Sample, gripper_dim: int | None = None) -> Bool[np.ndarray, "n"]:
    """Whether the action of a row repeats the one before it, or is 0 in all dims but a repeated gripper command."""
    actions = sample.actions
    change = np.abs(np.diff(actions, axis=0, prepend=actions[:1]))
    usual = np.quantile(np.abs(actions - np.median(actions, axis=0)), 0.99, axis=0)
    repeated = change <= _STILL * usual
    zero = np.abs(actions) <= _STILL * usual
    if gripper_dim is not None:
        zero[:, gripper_dim] = repeated[:, gripper_dim]
    # Going on at one speed repeats a displacement, too: nothing may have moved in between.
    moved = np.abs(np.diff(sample.states, axis=0, append=sample.states[-1:]))
    rests = (moved <= _STILL * np.quantile(moved, 0.99, axis=0)).all(1)
    result = zero.all(1) | (repeated.all(1) & rests)
    result[sample.starts[:-1]] = False  # there is nothing before the first frame
    return result
