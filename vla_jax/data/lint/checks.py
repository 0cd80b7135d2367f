"""All checks of a set in one list."""

from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint import actions, frames, gripper, lengths, numbers, pictures, replay, sample, timing, words
from vla_jax.data.lint.report import Notes, Report
from vla_jax.data.lint.settings import LintConfig


def lint(dataset: EpisodeDataset, config: LintConfig, run_again: replay.Replay | None = None) -> Report:
    """Look at a set's numbers (in whole episodes, spread over it), words and some pictures. `run_again` replays its
    actions in a simulator.

    Raises DataError when a feature that `config` names is missing.
    """
    notes = Notes()
    lengths.check_chunks(dataset, config, notes)
    drawn = numbers.check(dataset, sample.draw(dataset, config), config, notes)
    lengths.check_stillness(drawn, config, notes)
    # Translations in another frame look like wrong signs and missing matches: one reason is enough.
    if not frames.check(drawn, notes):
        actions.check(drawn, config, notes)
    gripper.check(drawn, config, notes)
    timing.check(dataset, drawn, config, notes)
    words.check(dataset, config, notes)
    pictures.check(dataset, config, notes)
    if run_again is not None:
        replay.check(run_again, notes)
    found = sorted(notes.findings, key=lambda finding: finding.severity != "error")
    return Report(dataset.place, tuple(found), notes.facts)
