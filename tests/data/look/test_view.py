import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.data.memory_set import clean_set
from vla_jax.core import errors
from vla_jax.data.look import view


class Balanced(HTMLParser):
    """Fails on a tag that is closed without being open, an attribute given twice, and text that should be escaped."""

    void = frozenset({"meta", "img", "link", "br"})

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.open, self.seen = [], []

    def handle_data(self, data):
        assert self.open[-1:] == ["style"] or not set(data) & {"<", ">", "&"}

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.seen.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(path):
    parser = Balanced()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser.seen


@pytest.fixture
def dataset():
    return clean_set(num_episodes=6, num_steps=20)


def test_a_page_shows_the_pictures_of_the_chosen_episodes(dataset, tmp_path):
    path = view.write_page(dataset, tmp_path / "deep" / "page.html", episodes=(1, 3), num_pictures=5)
    sources = [attributes["src"] for tag, attributes in parsed(path) if tag == "img"]
    assert len(sources) == 2 * 2 * 5  # episodes, cameras, pictures
    first = Image.open(io.BytesIO(base64.b64decode(sources[0].removeprefix("data:image/jpeg;base64,"))))
    truth = dataset.pictures["observation/front"][20].astype(int)  # the first frame of episode 1
    assert np.abs(np.asarray(first).astype(int) - truth).mean() < 6
    assert list(tmp_path.joinpath("deep").iterdir()) == [path]


REFERENCES = ("for", "headers", "aria-labelledby", "aria-describedby", "aria-controls", "list")


def test_whatever_the_page_refers_to_is_in_it(dataset, tmp_path):
    """Pictures decode to their size, ids are there once, and everything that names one names one that is there."""
    dataset.damaged = frozenset([0])
    dataset.words["language_instruction"] = ['say "hi" & <go>'] * dataset.num_frames
    seen = parsed(view.write_page(dataset, tmp_path / "page.html"))
    ids = [attributes["id"] for _, attributes in seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [name for _, attributes in seen for key in REFERENCES for name in attributes.get(key, "").split()]
    named += [value[1:] for _, a in seen for value in a.values() if value and re.match(r"#[A-Za-z]", value)]
    named += re.findall(r"url\(#([^)]+)\)", " ".join(value or "" for _, a in seen for value in a.values()))
    assert set(named) <= set(ids)
    sources = [attributes["src"] for tag, attributes in seen if tag == "img"]
    assert len(sources) == 4 * 2 * 8 - 2  # episodes, cameras, pictures; one frame is damaged
    for source in sources:
        kind, _, data = source.partition(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        picture.load()  # decodes all of it, and raises where the data end early
        assert kind == f"data:image/{picture.format.lower()}" and picture.size == (16, 12)
    numbers = [value for tag, a in seen for key, value in a.items() if key in ("x1", "x2", "y1", "y2")]
    assert numbers and np.isfinite(np.array(numbers, float)).all()


def test_a_page_opens_offline(dataset, tmp_path):
    text = view.write_page(dataset, tmp_path / "page.html").read_text()
    assert "<script" not in text and not re.search(r'(src|href)="(?!data:)', text) and "url(" not in text


def test_a_page_plots_every_dim_and_says_the_words(dataset, tmp_path):
    dataset.words["language_instruction"] = ["put <a> & b"] * dataset.num_frames
    seen = parsed(path := view.write_page(dataset, tmp_path / "page.html", episodes=(0,)))
    assert sum(tag == "svg" for tag, _ in seen) == 14  # 7 of the state, 7 of the action
    text = path.read_text()
    assert "Episode 0: put &lt;a&gt; &amp; b" in text and "memory, episode 0, step 0" in text
    actions = dataset.columns["action"][:20, 0]
    assert f"{actions.min():.3g} to {actions.max():.3g}" in text


def test_a_line_goes_from_its_minimum_at_the_bottom_to_its_maximum_at_the_top(dataset, tmp_path):
    dataset.columns = {"action": np.arange(dataset.num_frames, dtype=np.float32)}
    (line,) = [a["d"] for tag, a in parsed(view.write_page(dataset, tmp_path / "p.html", (0,))) if tag == "path"]
    points = np.array([pair.split(",") for pair in re.split("[ML]", line)[1:]], np.float64)
    assert len(points) == 20 and (np.diff(points[:, 0]) > 0).all() and (np.diff(points[:, 1]) < 0).all()


def test_damaged_pictures_and_numbers_leave_gaps(dataset, tmp_path):
    dataset.damaged = frozenset([0])
    dataset.columns["action"][5, 0] = np.nan
    dataset.columns["action"][:20, 1] = np.inf
    text = view.write_page(dataset, tmp_path / "page.html", episodes=(0,)).read_text()
    assert text.count("damaged") == 2 and "no finite value" in text and "nan" not in text
    assert any(line.count("M") == 2 for line in re.findall(r'd="([^"]*)"', text))


def test_a_set_without_words_or_cameras_has_a_page(dataset, tmp_path):
    dataset.words, dataset.pictures = {}, {}
    assert "(no instruction)" in view.write_page(dataset, tmp_path / "page.html").read_text()


def test_an_episode_that_does_not_exist_is_refused(dataset, tmp_path):
    with pytest.raises(errors.ConfigError, match="expected  0 to 5"):
        view.write_page(dataset, tmp_path / "page.html", episodes=(6,))
    assert list(tmp_path.iterdir()) == []
