"""docs/rl.md: the learner in one file is as short as it says, and learns."""

import re
from pathlib import Path

from vla_jax.training import logging as logs

DOCS = (Path(__file__).parents[1] / "docs" / "rl.md").read_text()


def test_the_learner_in_one_file_trains(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(code.splitlines()) <= 80
    monkeypatch.chdir(tmp_path)
    # less of the same: a test has no half minute
    exec(compile(code.replace("FitConfig(500,", "FitConfig(250,"), "docs/rl.md", "exec"), {"__name__": "docs"})
    rates = [row["collect/success_rate"] for row in logs.read("runs/td3")]
    assert len(rates) == 5 and rates[-1] > rates[0] + 0.1


def test_every_page_that_it_links_is_there():
    for name in re.findall(r"\]\(([a-z_]+\.md)\)", DOCS):
        assert (Path(__file__).parents[1] / "docs" / name).is_file(), name
