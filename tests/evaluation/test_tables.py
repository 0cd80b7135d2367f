import dataclasses

import pytest

from tests.evaluation.test_results import entry
from vla_jax.core import errors
from vla_jax.evaluation import results, statistics, table_specs, tables

SPEC = tables.TableSpec(
    name="demo",
    title="A table",
    columns=(tables.Column("success_rate", "success"),),
    rows=(
        tables.Row("small", "small | net"),
        tables.Row(
            "large", "large", paper=(tables.PaperCell("success_rate", 0.884, "a paper, table 1"),), is_paper_scale=True
        ),
    ),
    seeds=(0, 1),
    episodes=4,
)


def run(seed, success):
    success = [bool(s) for s in success]
    rate = sum(success) / len(success)
    interval = statistics.wilson(sum(success), len(success))
    return entry(
        row="small", seeds=(seed,), episodes=len(success), mean=rate, interval=interval, records={"success": success}
    )


def test_cells_without_a_run_stay_empty_and_paper_scale_says_so():
    text = tables.to_markdown(SPEC, [])
    assert "| small \\| net |  |  |" in text
    assert "| large | 88.4 % [1] | paper scale, not run |" in text
    assert "[1] a paper, table 1" in text


def test_a_run_fills_its_cell_with_interval_episodes_and_seeds():
    text = tables.to_markdown(SPEC, [run(0, [1, 1, 1, 0])])
    # Wilson for 3 of 4: centre (0.75 + 3.8415 / 8) / 1.9604 = 0.6276, half-width 0.3268
    assert "| small \\| net |  | 75.0 % [30.1, 95.4], 4 episodes, 1 seed |" in text


def test_seeds_are_joined_and_their_spread_counts():
    joined = tables.measure([run(1, [1, 1, 1, 1] * 10), run(0, [0, 0, 0, 1] * 10)])
    assert (joined.mean, joined.episodes, joined.seeds) == (0.625, 80, (0, 1))
    pooled = statistics.wilson(50, 80)
    assert joined.interval.high - joined.interval.low > 2 * (pooled.high - pooled.low)


def test_the_same_seed_twice_is_an_error():
    with pytest.raises(errors.DataError, match="a seed was run twice"):
        tables.to_markdown(SPEC, [run(0, [1]), run(0, [1])])


def test_an_entry_of_an_unknown_row_is_named():
    with pytest.raises(errors.DataError, match="did you mean 'small'"):
        tables.to_markdown(SPEC, [dataclasses.replace(run(0, [1]), row="smal")])


def test_html_is_escaped():
    spec = dataclasses.replace(SPEC, title="a < b", rows=(tables.Row("small", "<script>"),))
    text = tables.to_html(spec, [run(0, [1, 0])])
    assert "<h2>a &lt; b</h2>" in text and "&lt;script&gt;" in text and "<script>" not in text
    assert "50.0 %" in text


def test_a_paper_cell_needs_its_column():
    with pytest.raises(errors.ConfigError, match="no column 'sucess_rate'"):
        tables.TableSpec(
            "t", "t", SPEC.columns, (tables.Row("r", "r", paper=(tables.PaperCell("sucess_rate", 1, "x"),)),), (0,), 1
        )


def test_a_row_twice_is_an_error():
    with pytest.raises(errors.ConfigError, match="every row once"):
        dataclasses.replace(SPEC, rows=(SPEC.rows[0], SPEC.rows[0]))


@pytest.mark.parametrize("name", list(table_specs.TABLES))
def test_every_registered_table_renders_empty(name, tmp_path):
    spec = table_specs.TABLES[name]
    assert spec.name == name
    entries = results.load_table(tmp_path, name)
    assert spec.title in tables.to_markdown(spec, entries)
    assert tables.to_html(spec, entries).count("<tr>") == 1 + len(spec.rows)
    assert all(cell.source for row in spec.rows for cell in row.paper)


def test_an_unknown_table_is_answered_with_the_closest():
    with pytest.raises(errors.ConfigError, match="did you mean 'demo'"):
        table_specs.TABLES["dmo"]
