"""Do the actions mean what one thinks: delta or absolute, order, sign, delay, and do they lead where the states go?"""

from collections.abc import Mapping

import numpy as np

from vla_jax.data.lint import matching
from vla_jax.data.lint.matching import Match
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.sample import Sample
from vla_jax.data.lint.settings import LintConfig

_WEAK = 0.3  # correlation; between this and matching.MATCHED a dim is neither a match nor an oddity
_DRIFT = 0.5  # of the way the robot goes
_LATE = 0.15  # of correlation gained by reading the actions one step earlier


def check(sample: Sample, config: LintConfig, notes: Notes) -> dict[int, Match]:
    """What every action dim but the gripper's does to the states."""
    gripper = config.declared.gripper_action_dim
    relations = matching.relate(sample)
    found = {dim: match for dim, match in matching.matches(relations).items() if dim != gripper}
    if sample.states.shape[1] == 0 or len(sample.frames) == 0:
        return found
    notes.fact("actions", _described(found))
    unmatched = [
        dim
        for dim, strongest in enumerate(relations.strongest)
        if dim != gripper and strongest < _WEAK and sample.actions[:, dim].std() > 1e-9
    ]
    _check_kind(found, config, notes)
    _check_order(found, notes)
    _check_sign(found, notes)
    _check_unmatched(unmatched, notes)
    is_late = _check_delay(sample, found, notes)
    if not is_late:
        _check_integral(sample, found, notes)
    return found


def _described(found: Mapping[int, Match]) -> str:
    if not found:
        return "no dim explains a state dim"
    return "; ".join(
        f"{dim} is {'a movement of' if match.kind == 'delta' else 'a target of'} state {match.state_dim} "
        f"(r {match.correlation:.2f}, gain {match.gain:.3g})"
        for dim, match in found.items()
    )


def _check_kind(found: Mapping[int, Match], config: LintConfig, notes: Notes) -> None:
    by_kind = {kind: [dim for dim, match in found.items() if match.kind == kind] for kind in ("delta", "absolute")}
    declared = config.declared.action_kind
    wrong = [] if declared is None else by_kind["absolute" if declared == "delta" else "delta"]
    if wrong:
        other = found[wrong[0]]
        notes.error(
            "action kind",
            f"actions are declared {declared}, but dims {wrong} behave as {other.kind}: dim {wrong[0]} explains "
            f"{'the movement' if other.kind == 'delta' else 'the next value'} of state dim {other.state_dim} "
            f"(r {other.correlation:.2f}, gain {other.gain:.3g})",
            f"declare action_kind={other.kind!r}, or convert the actions",
        )
    elif all(by_kind.values()):
        notes.warning(
            "mixed kinds",
            f"action dims {by_kind['delta']} are movements, dims {by_kind['absolute']} are targets",
            "convert one of them, so that padding past the end of an episode means the same in all dims",
        )


def _check_order(found: Mapping[int, Match], notes: Notes) -> None:
    """Matched dims should meet the states in their own order."""
    dims, states = list(found), [match.state_dim for match in found.values()]
    if states == sorted(states):
        return
    expected = dict(zip(dims, sorted(states), strict=True))
    moved = [dim for dim in dims if found[dim].state_dim != expected[dim]]
    shown = ", ".join(
        f"action {dim} drives state {found[dim].state_dim} (r {found[dim].correlation:.2f})" for dim in moved
    )
    notes.error(
        "swapped dims",
        f"the order of actions is not that of states: {shown}",
        f"reorder action dims {moved}, or correct state_keys",
    )


def _check_sign(found: Mapping[int, Match], notes: Notes) -> None:
    flipped = [match for match in found.values() if match.correlation < 0]
    if flipped:
        shown = ", ".join(f"action {m.action_dim} (r {m.correlation:.2f}, gain {m.gain:.3g})" for m in flipped)
        notes.error(
            "sign",
            f"the state goes the other way than the action says: {shown}",
            "negate these dims, or correct the frame they are expressed in",
        )


def _check_unmatched(dims: list[int], notes: Notes) -> None:
    if dims:
        notes.warning(
            "unexplained action",
            f"action dims {dims} explain no state dim: every correlation with a movement or a next value is below "
            f"{_WEAK}",
            "add what they drive to state_keys, or look at their frame and units; for a gripper, declare its dim",
        )


def _check_delay(sample: Sample, found: Mapping[int, Match], notes: Notes) -> bool:
    """An action may move the robot later, never earlier."""
    rows = sample.steps(2)
    late = []
    for match in found.values():
        if match.kind == "delta" and len(rows) >= 8:
            moved = sample.movements(rows)[:, [match.state_dim]]
            now, _ = matching.correlations(sample.actions[rows][:, [match.action_dim]], moved)
            after, _ = matching.correlations(sample.actions[rows + 1][:, [match.action_dim]], moved)
            if abs(after[0, 0]) > abs(now[0, 0]) + _LATE:
                late.append(f"action {match.action_dim} (r {now[0, 0]:.2f} now, {after[0, 0]:.2f} a step later)")
    if late:
        notes.error(
            "late actions",
            f"movements are explained by the action recorded a step after them: {', '.join(late)}",
            "shift the actions one step towards the start of the episode",
        )
    return bool(late)


def _check_integral(sample: Sample, found: Mapping[int, Match], notes: Notes) -> None:
    """Sum the actions with their gains from the first state of every episode: does that lead along the states?"""
    drifting, measured = [], []
    for match in (match for match in found.values() if match.kind == "delta"):
        rows = sample.steps(1)
        moved, acted = sample.movements(rows)[:, match.state_dim], sample.actions[rows, match.action_dim]
        last = np.flatnonzero(np.diff(rows, append=-1) != 1)  # of every episode among the rows
        gaps, ways = [], []
        for part in np.split(np.arange(len(rows)), last[:-1] + 1):
            gaps.append(np.cumsum(moved[part] - match.gain * acted[part]))
            ways.append(np.cumsum(moved[part]))
        gap, way = (float(np.sqrt(np.mean(np.concatenate(values) ** 2))) for values in (gaps, ways))
        measured.append(gap / max(way, 1e-12))
        if measured[-1] > _DRIFT:
            drifting.append(f"action {match.action_dim} (off by {measured[-1]:.0%} of the way, gain {match.gain:.3g})")
    if measured:
        notes.fact("integrated actions", f"off by {np.mean(measured):.0%} of the way, mean over dims")
    if drifting:
        notes.warning(
            "actions do not integrate",
            f"summing the actions does not follow the states: {', '.join(drifting)}",
            "look for a bias, for dropped or resampled frames, and for actions that the controller clips",
        )
