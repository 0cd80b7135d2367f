"""Which way the gripper's number opens, and whether all episodes agree."""

import numpy as np

from vla_jax.data.lint import matching
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.sample import Sample
from vla_jax.data.lint.settings import LintConfig

_LAG = 5  # steps that fingers may take to follow
_CLEAR = 0.3  # correlation


def check(sample: Sample, config: LintConfig, notes: Notes) -> None:
    """Needs `gripper_action_dim`; signs need `gripper_state_dim` as well."""
    declared = config.declared
    dim = declared.gripper_action_dim
    if dim is None or not 0 <= dim < sample.actions.shape[1] or len(sample.frames) == 0:
        return
    command = sample.actions[:, dim]
    values = np.unique(command.round(4))
    notes.fact("gripper command", _described(values))
    if np.abs(command).max() > 1.05:
        notes.warning(
            "gripper range",
            f"the gripper command (action dim {dim}) reaches {command[np.abs(command).argmax()]:.4g}",
            "map it to [0, 1] or [-1, 1], which is what set conventions and robots know",
        )
    if declared.gripper_state_dim is None or not 0 <= declared.gripper_state_dim < sample.states.shape[1]:
        return
    signs = _signs(sample, dim, declared.gripper_state_dim)
    signs = signs if declared.larger_state_is_open else -signs
    clear = signs[np.abs(signs) > _CLEAR]
    if len(clear) == 0:
        notes.fact("gripper direction", "not seen: the fingers do not follow the command")
        return
    opens = bool(np.median(clear) > 0)
    notes.fact("gripper direction", f"a larger command {'opens' if opens else 'closes'}")
    odd = int(((clear > 0) != opens).sum())
    if odd:
        notes.error(
            "gripper convention differs",
            f"in {odd} of {len(clear)} episodes a larger command {'closes' if opens else 'opens'}, in the others it "
            f"{'opens' if opens else 'closes'}",
            "convert the episodes of one source before they are joined",
        )
    elif declared.larger_action_opens is not None and opens != declared.larger_action_opens:
        said, seen = ("opens", "closes") if declared.larger_action_opens else ("closes", "opens")
        notes.error(
            "gripper sign",
            f"a larger command is declared to be one that {said}; the fingers say that it {seen} "
            f"(median r {np.median(clear):.2f} over {len(clear)} episodes)",
            "invert the gripper dim, or correct the declaration",
        )


def _signs(sample: Sample, action_dim: int, state_dim: int) -> np.ndarray:
    """For every episode the correlation of the command with the fingers at the lag where it is strongest; 0: none."""
    signs = np.zeros(len(sample.lengths))
    for i, (start, stop) in enumerate(zip(sample.starts[:-1], sample.starts[1:], strict=True)):
        command, fingers = sample.actions[start:stop, [action_dim]], sample.states[start:stop, [state_dim]]
        found = [
            float(matching.correlations(command[: len(command) - lag], fingers[lag:])[0][0, 0])
            for lag in range(1, min(_LAG, len(command) - 4) + 1)
        ]
        signs[i] = max(found, key=abs, default=0.0)
    return signs


def _described(values: np.ndarray) -> str:
    if len(values) <= 3:
        return "values " + ", ".join(f"{value:g}" for value in values)
    return f"continuous in [{values[0]:.3g}, {values[-1]:.3g}]"
