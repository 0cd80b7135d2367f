import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import toy_policy
from vla_jax.core import errors, wire
from vla_jax.data.formats import image_codec
from vla_jax.data.pictures.resize import resize
from vla_jax.serving import keys
from vla_jax.serving.keys import RequestReader
from vla_jax.training import trained

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
WRIST = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
STATE = RNG.normal(size=8)
LIBERO = {"observation/image": IMAGE, "observation/wrist_image": WRIST, "observation/state": STATE, "prompt": "go"}
DROID = {
    "observation/exterior_image_1_left": IMAGE,
    "observation/wrist_image_left": WRIST,
    "observation/joint_position": STATE[:7],
    "observation/gripper_position": STATE[7:],
    "prompt": "go",
}
FLAT = {"observation/base": IMAGE, "observation/wrist": WRIST, "observation/state": STATE, "prompt": "go"}
DATA = {
    "observation/top": IMAGE,
    "observation/hand": WRIST,
    "observation/joints": STATE[:7],
    "observation/grip": STATE[7],
    "prompt": "go",
}


@pytest.fixture(scope="module")
def reader(policy):
    return RequestReader.of(policy)


@pytest.mark.parametrize("message", [FLAT, LIBERO, DROID, DATA], ids=["flat", "libero", "droid", "data"])
def test_every_layout_says_the_same(reader, message):
    request = reader.read({**message, "observation/exterior_image_2_left": WRIST, "more": "is ignored"})
    np.testing.assert_array_equal(request.images["base"], IMAGE)
    np.testing.assert_array_equal(request.images["wrist"], WRIST)
    np.testing.assert_array_equal(request.state, STATE.astype(np.float32))
    assert request.prompt[request.prompt_mask].tolist() == [ord("g") + 1, ord("o") + 1]
    assert request.image_mask == {"base": True, "wrist": True} and request.seed is None


def test_maps_inside_maps_are_joined(reader):
    nested = {"observation": {"base": IMAGE, "wrist": WRIST, "state": STATE}, "prompt": "go"}
    np.testing.assert_array_equal(reader.read(nested).images["base"], IMAGE)
    with pytest.raises(errors.RequestError, match="observation/base"):
        reader.read({**nested, "observation/base": IMAGE})


def test_pictures_of_other_sizes_become_the_policys(reader):
    large = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    seen = reader.read({**FLAT, "observation/base": large}).images["base"]
    blocks = large.reshape(16, 2, 16, 2, 3).astype(int).sum((1, 3))
    np.testing.assert_array_equal(seen, (blocks + 2) // 4)
    wide = np.full((10, 20, 3), 200, np.uint8)
    seen = reader.read({**FLAT, "observation/base": wide}).images["base"]
    assert (seen[4:12] == 200).all() and (seen[:4] == 0).all() and (seen[12:] == 0).all()


def test_the_fit_of_the_training_data_is_used(policy):
    trained_on = toy_policy.recipe(resize=(16, 16, "stretch"))
    edges = trained.make_edges(trained_on, toy_policy.statistics())
    reader = RequestReader.of(dataclasses.replace(policy, recipe=trained_on, edges=edges))
    for shape in ((10, 20, 3), (32, 32, 3)):  # of a whole multiple too: training resized, it did not average blocks
        picture = RNG.integers(0, 256, shape, dtype=np.uint8)
        seen = reader.read({**FLAT, "observation/base": picture}).images["base"]
        np.testing.assert_array_equal(seen, resize(picture, (16, 16, "stretch")))


def test_encoded_pictures_are_decoded(reader):
    encoded = {"observation/base": image_codec.encode_png(IMAGE), "observation/wrist": image_codec.encode_jpeg(WRIST)}
    request = reader.read({**FLAT, **encoded})
    np.testing.assert_array_equal(request.images["base"], IMAGE)
    np.testing.assert_array_equal(request.images["wrist"], image_codec.decode(encoded["observation/wrist"]))


def test_a_small_file_that_claims_a_huge_picture_is_refused_before_it_is_decoded(reader):
    png = bytearray(image_codec.encode_png(IMAGE))
    png[16:24] = (8000).to_bytes(4, "big") * 2  # width and height of the header; its checksum is not looked at
    with pytest.raises(errors.RequestError, match="observation/base"):
        reader.read({**FLAT, "observation/base": bytes(png)})


@pytest.mark.parametrize(
    "change, place",
    [
        ({"observation/base": None}, "observation/base"),
        ({"observation/base": IMAGE.astype(np.float32)}, "observation/base"),
        ({"observation/base": IMAGE[..., :2]}, "observation/base"),
        ({"observation/base": IMAGE[None]}, "observation/base"),
        ({"observation/base": np.zeros((0, 4, 3), np.uint8)}, "observation/base"),
        ({"observation/base": np.zeros((4096, 4096, 3), np.uint8)}, "observation/base"),
        ({"observation/wrist": b"no picture"}, "observation/wrist"),
        ({"observation/wrist": image_codec.encode_jpeg(WRIST)[:200]}, "observation/wrist"),
        ({"observation/state": np.full(8, np.nan)}, "observation/state"),
        ({"observation/state": np.full(8, 1e300)}, "observation/state"),
        ({"observation/state": STATE[:7]}, "observation/state"),
        ({"observation/state": np.zeros(8, bool)}, "observation/state"),
        ({"observation/state": "state"}, "observation/state"),
        ({"observation/state": [1.0] * 7 + ["x"]}, "observation/state"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 25}, "prompt: instruction"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"realtime/actions": np.zeros((2, 3)), "realtime/frozen": 1}, "realtime/actions"),
    ],
)  # fmt: skip
def test_an_error_names_the_field(reader, change, place):
    with pytest.raises(errors.RequestError) as caught:
        reader.read({**FLAT, **change})
    assert caught.value.place.startswith(place)


def test_a_missing_field_is_named_with_what_was_probably_meant(reader):
    message = {**FLAT, "observation/wirst": WRIST}
    del message["observation/wrist"]
    with pytest.raises(errors.RequestError, match="did you mean 'observation/wirst'") as caught:
        reader.read(message)
    assert caught.value.place == "observation/wrist"


def test_a_missing_prompt_is_an_error_unless_the_server_has_one(policy, reader):
    message = {key: value for key, value in FLAT.items() if key != "prompt"}
    with pytest.raises(errors.RequestError, match="prompt"):
        reader.read(message)
    assert RequestReader.of(policy, default_prompt="go").read(message).prompt_mask.sum() == 2


def test_an_optional_camera_may_be_missing(policy):
    optional = dataclasses.replace(policy, recipe=toy_policy.recipe(optional_cameras=("wrist",)))
    message = {key: value for key, value in FLAT.items() if key != "observation/wrist"}
    request = RequestReader.of(optional).read(message)
    assert request.image_mask == {"base": True, "wrist": False} and not request.images["wrist"].any()


def test_one_layout_may_be_demanded(policy):
    reader = RequestReader.of(policy, layout="droid")
    reader.read(DROID)
    with pytest.raises(errors.RequestError, match="observation/exterior_image_1_left"):
        reader.read(LIBERO)
    with pytest.raises(errors.ConfigError, match="did you mean 'libero'"):
        RequestReader.of(policy, layout="libera")


def test_what_is_left_of_a_chunk_is_padded_to_the_horizon(policy):
    reader = RequestReader.of(policy, takes_previous=True)
    left = RNG.normal(size=(4, 3))
    previous = reader.read({**FLAT, "realtime/actions": left, "realtime/frozen": np.int64(2)}).previous
    np.testing.assert_array_equal(previous.actions, np.vstack([left, np.zeros((2, 3))]).astype(np.float32))
    assert (previous.frozen, previous.overlap) == (2, 4)
    bad = [
        {"realtime/actions": np.zeros((7, 3)), "realtime/frozen": 1},
        {"realtime/actions": np.zeros((2, 4)), "realtime/frozen": 1},
        {"realtime/actions": np.zeros((0, 3)), "realtime/frozen": 0},
        {"realtime/actions": np.zeros((2, 3)), "realtime/frozen": 3},
        {"realtime/actions": np.full((2, 3), np.inf), "realtime/frozen": 1},
        {"realtime/actions": np.zeros((2, 3))},
        {"realtime/frozen": 1},
    ]
    for fields in bad:
        with pytest.raises(errors.RequestError, match="realtime/"):
            reader.read({**FLAT, **fields})


def test_layouts_are_listed_once_and_the_policys_own_comes_first():
    assert [layout.name for layout in keys.layouts_of(toy_policy.recipe())] == ["flat", "data", "libero", "droid"]


values = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
    | st.sampled_from([IMAGE, IMAGE[:3], STATE, STATE[:7], np.float32(1), np.full(8, np.inf), [1, 2.0], {"a": 1}])
)  # fmt: skip


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*FLAT, *DROID, "seed", "realtime/actions", "realtime/frozen"]), values))
def test_whatever_comes_is_a_request_of_the_policys_shapes_or_a_request_error(reader, changes):
    try:
        request = reader.read(wire.unpack(wire.pack({**FLAT, **changes})))
    except errors.RequestError as error:
        assert any(error.place.startswith(key) for key in [*FLAT, *DROID, "seed", "realtime"])
        return
    assert request.state.shape == (8,) and np.isfinite(request.state).all()
    assert {name: (image.shape, image.dtype) for name, image in request.images.items()} == {
        "base": ((16, 16, 3), np.uint8),
        "wrist": ((16, 16, 3), np.uint8),
    }
