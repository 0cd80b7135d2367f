"""All checks of a set in one list."""

from vla_jax.data.embodiments import Embodiment
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint import (
    actions,
    declared,
    frames,
    gripper,
    lengths,
    numbers,
    pictures,
    replay,
    sample,
    timing,
    turns,
    words,
)
from vla_jax.data.lint.report import Notes, Report
from vla_jax.data.lint.settings import LintConfig


def lint(
    dataset: EpisodeDataset,
    config: LintConfig,
    *,
    row: Embodiment | None = None,
    run_again: replay.Replay | None = None,
) -> Report:
    """Look at a set's numbers (in whole episodes, spread over it), words and some pictures.

    `row` is what the set is said to be (`declared.config_of(row)` is then the config to begin with): where features are
    not as it says, that alone is reported. `run_again` replays recorded actions in a simulator.

    Raises DataError when a feature that `config` names is missing.
    """
    notes = Notes()
    if row is not None:
        declared.check(dataset, row, notes)
        if notes.findings:
            notes.fact("looked at", f"features only: they are not those of {row.name!r}")
            return _report(dataset, notes)
    lengths.check_chunks(dataset, config, notes)
    drawn = numbers.check(dataset, sample.draw(dataset, config), config, notes)
    lengths.check_stillness(drawn, config, notes)
    # Translations in another frame look like wrong signs and missing matches: one reason is enough.
    if not frames.check(drawn, notes):
        actions.check(turns.added_up(drawn, config.declared.rotation_state_dims), config, notes)
    gripper.check(drawn, config, notes)
    timing.check(dataset, drawn, config, notes)
    words.check(dataset, config, notes)
    pictures.check(dataset, config, notes)
    if run_again is not None:
        replay.check(run_again, notes)
    return _report(dataset, notes)


def _report(dataset: EpisodeDataset, notes: Notes) -> Report:
    found = sorted(notes.findings, key=lambda finding: finding.severity != "error")
    return Report(dataset.place, tuple(found), notes.facts)
