import io

import numpy as np
from PIL import Image
from rich.console import Console

from tests.data.memory_set import clean_set
from tests.data.toy_rlds import LENGTHS
from vla_jax.data.formats.faults import Fault
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.look.inspect import Report, contact_sheet, inspect, report_split, statistics_table
from vla_jax.data.normalization import FieldStatistics, Statistics


def printed(thing) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(thing)
    return console.file.getvalue()


def test_a_report_counts_what_was_written(toy):
    report = inspect(toy)
    (split,) = report.splits
    assert (split.num_episodes, split.num_frames) == (len(LENGTHS), sum(LENGTHS))
    assert split.episode_lengths == (1, 4, 7)  # of 5, 1, 7, 3
    assert split.instructions == {"instruction 0": 2, "instruction 1": 2}
    assert split.num_bytes == sum(path.stat().st_size for path in toy.iterdir() if path.suffix != ".json")
    assert (split.ranges["action"].min[0], split.ranges["action"].max[3]) == (0.0, 302.75)


def test_a_report_prints_schema_instructions_and_ranges(toy):
    text = printed(inspect(toy))
    for expected in ("toy 1.0.0", "steps/observation/front", "[16, 24, 3]", "instruction 1", "302.8", "1 to 7 steps"):
        assert expected in text


def test_faults_and_rows_that_are_not_finite_are_reported():
    dataset = clean_set(num_episodes=2, num_steps=10)
    dataset.columns["action"][3] = np.nan
    dataset.columns["absent"] = np.full(20, np.nan, np.float32)
    dataset.faults.add(Fault("missing file", "shard-3", "no such file"))
    report = report_split(dataset, "train", [])
    assert report.ranges["action"].count == 19 and "absent" not in report.ranges
    assert [fault.place for fault in report.faults] == ["shard-3"]
    text = printed(Report("set", "", dataset.specs, (report,)))
    assert "damaged: 1" in text and "shard-3" in text and "no such file" in text


def test_statistics_print_one_line_per_dim():
    field = FieldStatistics.of(np.arange(101, dtype=np.float32)[:, None])
    lines = printed(statistics_table(Statistics(field, field))).splitlines()
    assert sum(("state" in line or "actions" in line) and "99" in line for line in lines) == 2


def test_the_contact_sheet_shows_first_middle_and_last_frames(toy, tmp_path):
    dataset = RldsDataset(toy, names=("observation/front", "language_instruction"))
    sheet = np.asarray(Image.open(contact_sheet(dataset, tmp_path / "deep" / "sheet.png", num_episodes=2)))
    # Rows of 16 (caption) + 128 + 4 pixels, pictures of 192 x 128 and gaps of 4; the toy's frame t of episode e has
    # brightness 10 e + 5 t: episode 0 has 5 steps, episode 3 has 3.
    centres = sheet[[80, 80 + 148]][:, [96, 96 + 196, 96 + 392], 0].astype(int)
    assert np.abs(centres - [[0, 10, 20], [30, 35, 40]]).max() <= 2
