"""docs/data.md against the code: the table of known sets, the verbs, and the fields that it names."""

import dataclasses
import re
from pathlib import Path

import pytest
import rich.console

from vla_jax.cli_data.verbs import VERBS
from vla_jax.data.embodiments import Embodiment, Vector, embodiments
from vla_jax.data.schema import DatasetConfig

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
_SHORT = {"joint_velocities": "joint velocities", "joint_torques": "torques", "pose_matrix": "4x4 pose"}


def embodiment_table() -> str:
    """The table of known sets, as docs/data.md has to have it."""
    lines = ["| set | robot | Hz | cameras | state | action | kind, frame | gripper open, closed | as it is |"]
    lines.append("|" + "---|" * 9)
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in embodiments().values()]
    return "\n".join(lines)


def _cells(row: Embodiment) -> tuple[str, ...]:
    shown = next((alias for alias in row.aliases if row.name.startswith(alias)), row.name)
    gripper = {"none": "none", "unknown": "unknown"}.get(
        row.gripper.kind, f"{_number(row.gripper.open)}, {_number(row.gripper.closed)}"
    )
    return (
        f"`{shown}`",
        row.robot,
        f"{row.control_hz:g}",
        ", ".join(role.replace("_", " ") for role in row.images),
        _parts(row.state) or "none",
        _parts(row.action),
        f"{row.action_kind}, {row.action_frame}",
        gripper + (" (direction)" if row.gripper.kind == "delta" else ""),
        "no" if row.needs else "yes",
    )


def _parts(vectors: tuple[Vector, ...]) -> str:
    parts = [part for vector in vectors for part in vector.parts]
    return ", ".join(f"{_SHORT.get(name, name.replace('_', ' '))} {width}" for name, width in parts)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def test_the_table_of_known_sets_is_that_of_embodiments_toml():
    found = re.search(r"<!-- embodiments: begin -->\n(.*)\n?<!-- embodiments: end -->", DOCS, re.DOTALL)
    assert found[1].strip() == embodiment_table(), "put embodiment_table() between the marks in docs/data.md"


def test_every_verb_has_an_example():
    for verb in VERBS:
        assert f"vla-jax data {verb} " in DOCS, verb
    assert set(re.findall(r"vla-jax data (\w+)", DOCS)) <= set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_options_of_the_examples_exist(verb, capsys):
    with pytest.raises(SystemExit):
        VERBS[verb](["--help"], rich.console.Console())
    offered = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    used = {
        name for line in re.findall(rf"vla-jax data {verb} ([^`\n]*)", DOCS) for name in re.findall(r"--[a-z-]+", line)
    }
    assert used <= offered


def test_every_field_of_a_dataset_is_explained():
    # path and split are what the commands take.
    fields = {field.name for field in dataclasses.fields(DatasetConfig)} - {"path", "split"}
    assert {name for name in fields if not re.search(rf"`{name}[`=]|\.{name}`", DOCS)} == set()
