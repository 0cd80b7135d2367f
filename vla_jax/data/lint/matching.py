"""Which state dim an action dim drives, how, and by what factor."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float64

from vla_jax.data.lint.sample import Sample

Kind = Literal["delta", "absolute"]

MATCHED = 0.6  # least correlation
_AHEAD = 5  # steps over which movements are summed, so that a robot that lags its command still matches
_FEWEST_ROWS = 8
_UNIT_GAIN = (0.5, 2.0)  # an absolute target is in the units of what it is a target of


@dataclasses.dataclass(frozen=True)
class Match:
    """The state dim that an action dim explains best: its movement (delta) or its next value (absolute)."""

    action_dim: int
    state_dim: int
    kind: Kind
    correlation: float  # of the action summed over some steps with the movement; or of the action with the next state
    gain: float  # state units per action unit


@dataclasses.dataclass(frozen=True, eq=False)
class Relations:
    """Every action dim with every state dim: correlation and gain as a movement and as a target."""

    strength: dict[Kind, Float64[np.ndarray, "a s"]]
    gain: dict[Kind, Float64[np.ndarray, "a s"]]

    @property
    def strongest(self) -> Float64[np.ndarray, "a"]:
        """Per action dim, over states and kinds."""
        return np.max([np.abs(each).max(1, initial=0) for each in self.strength.values()], axis=0)


def relate(sample: Sample) -> Relations:
    ahead = int(np.clip(np.median(sample.lengths) // 2, 1, _AHEAD)) if len(sample.lengths) else 1
    rows = sample.steps(ahead)
    nothing = np.zeros((sample.actions.shape[1], sample.states.shape[1]))
    if len(rows) < _FEWEST_ROWS:
        return Relations({"delta": nothing}, {"delta": nothing})
    summed, moved = sample.summed_actions(rows, ahead), sample.movements(rows, ahead)
    delta, delta_gain = correlations(summed, moved)
    actions, reached = sample.actions[rows], sample.states[rows + 1]
    absolute, absolute_gain = correlations(actions, reached)
    in_units = (absolute_gain > _UNIT_GAIN[0]) & (absolute_gain < _UNIT_GAIN[1])
    # A slow state is near its next value whatever is asked of it: an absolute action has to stay close, too.
    distance = np.sqrt(np.mean((actions[:, :, None] - reached[:, None, :]) ** 2, axis=0))
    close = distance < 0.5 * np.maximum(reached.std(0), 1e-12)[None]
    absolute = np.where(in_units & close, absolute, 0)
    return Relations({"delta": delta, "absolute": absolute}, {"delta": delta_gain, "absolute": absolute_gain})


def matches(relations: Relations) -> dict[int, Match]:
    """By action dim; those that explain no state dim are left out. Over all pairs, the strongest first, each state
    dim once."""
    pairs = [
        Match(int(i), int(j), kind, float(strength[i, j]), float(relations.gain[kind][i, j]))
        for kind, strength in relations.strength.items()
        for i, j in zip(*np.nonzero(np.abs(strength) >= MATCHED), strict=True)
    ]
    found: dict[int, Match] = {}
    for match in sorted(pairs, key=lambda match: -abs(match.correlation)):
        taken = {other.state_dim for other in found.values()}
        if match.action_dim not in found and match.state_dim not in taken:
            found[match.action_dim] = match
    return dict(sorted(found.items()))


def correlations(
    actions: Float64[np.ndarray, "n a"], states: Float64[np.ndarray, "n s"]
) -> tuple[Float64[np.ndarray, "a s"], Float64[np.ndarray, "a s"]]:
    """Pearson's r of every pair (0 where one does not vary), and the slope of the state over the action."""
    actions, states = actions - actions.mean(0), states - states.mean(0)
    covariance = actions.T @ states / len(actions)
    action_std, state_std = actions.std(0)[:, None], states.std(0)[None]
    varies = (action_std > 1e-9) & (state_std > 1e-9)
    r = np.where(varies, covariance / np.where(varies, action_std * state_std, 1), 0)
    return r, np.where(varies, covariance / np.where(varies, action_std**2, 1), 0)
