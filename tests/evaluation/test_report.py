import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.point_env import PointEnv, expert
from vla_jax.core import errors
from vla_jax.evaluation import charts, report, rollouts, video

INSTRUCTIONS = PointEnv.spec.instructions
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rollout = rollouts.Rollout(PointEnv(), expert, 4)
    stages = []
    for name, speed in (("slow", 0.3), ("fast", 1.0)):
        params = {"speed": jnp.float32(speed)}
        stages.append(
            report.Stage(
                name,
                f"speed {speed} <units>",
                seconds=100 * speed,
                steps_per_second=1234.0,
                curves=(charts.Curve("loss", [0, 1, 2], [3.0, 2.0, 1.0]),),
                films=report.films(rollout.record(params, KEY, (0, 1)), INSTRUCTIONS, 10),
            ).with_episodes(rollout.evaluate(params, KEY, 24, 24))
        )
    made = report.Report(
        title="A run & its numbers",
        summary="Two stages.",
        stages=(report.Stage("data", seconds=5.5), *stages),
        instructions=INSTRUCTIONS,
        comparisons=(("slow", "fast"),),
        manifest={"git": {"commit": "abc"}, "command": "vla-jax demo --out '<x>'"},
    )
    path = report.write_report(tmp_path_factory.mktemp("run"), made)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag must be closed in order; collects the attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_outside_itself(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    links = [value for _, name, value in tags.attributes if name in ("src", "href", "srcset", "data", "poster")]
    assert len(links) == 4 and all(link.startswith("data:video/mp4;base64,") for link in links)
    outside = re.sub(r"data:[a-z0-9/;]+,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?://|@import|url\(", outside)
    assert not any(tag in ("script", "link", "iframe") for tag, _, _ in tags.attributes) and "<script" not in page


def test_the_page_holds_every_number_of_the_run(page):
    assert "<h1>A run &amp; its numbers</h1>" in page
    assert "speed 0.3 &lt;units&gt;" in page
    assert "100.0 %" in page and "[86.2, 100.0]" in page  # Wilson of 24 of 24: low = 24 / (24 + 3.8415)
    assert "1 min 40 s" in page and "30 s" in page and "5.5 s" in page
    assert "1.23k updates/s" in page
    assert "from the same 24 initial states" in page and "exact McNemar" in page
    assert page.count("<video") == 4 and page.count(">failed</span>") + page.count(">solved</span>") == 4
    assert all(f"<th scope='row'>{instruction}</th>" in page for instruction in INSTRUCTIONS)
    assert "--out '&lt;x&gt;'" in page and "<details>" in page


def test_stages_from_other_initial_states_are_not_compared():
    stages = [
        report.Stage(name, success=np.ones(2, bool), initial_key=np.array(keys))
        for name, keys in (("a", [[0, 1], [0, 2]]), ("b", [[0, 1], [0, 3]]))
    ]
    with pytest.raises(errors.DataError, match="same initial states"):
        report.to_html(report.Report("t", "", tuple(stages), comparisons=(("a", "b"),)))


def test_a_comparison_names_stages_that_exist():
    stage = report.Stage("online")
    with pytest.raises(errors.ConfigError, match="did you mean 'online'"):
        report.Report("t", "", (stage,), comparisons=(("online", "onlin"),))
    with pytest.raises(errors.ConfigError, match="every stage once"):
        report.Report("t", "", (stage, stage))


def test_a_bare_report_has_no_empty_sections():
    page = report.to_html(report.Report("t", "", (report.Stage("data"),)))
    assert "<h2>" not in page and "<details>" not in page and "nan" not in page


def test_films_without_ffmpeg_are_images():
    clip = video.encode(np.zeros((2, 4, 4, 3), np.uint8), 5, format="webp", size=8)
    stage = report.Stage("s", films=(report.Film(clip, 'say "hi"', True),))
    page = report.to_html(report.Report("t", "", (stage,)))
    assert '<img width="8" height="8" alt="say &quot;hi&quot;" src="data:image/webp;base64,' in page
