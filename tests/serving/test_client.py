import subprocess
import sys

import numpy as np
import pytest

from tests.serving.running import METADATA, running
from vla_jax.core import errors
from vla_jax.core.access import Access, ApiKey
from vla_jax.core.backoff import Backoff
from vla_jax.serving.client import ChunkPlayer, ClientConfig, PolicyClient
from vla_jax.serving.robots import Robot

QUICK = ClientConfig(open_timeout=5, answer_timeout=5, backoff=Backoff(first=0.01, longest=0.05, give_up=0.5))


def test_waits_grow_to_a_bound_and_are_drawn_from_their_upper_half():
    backoff = Backoff(first=0.1, factor=2.0, longest=1.0)
    assert [backoff.wait(attempt, 0.0) for attempt in (1, 2, 3, 9)] == pytest.approx([0.05, 0.1, 0.2, 0.5])
    assert [backoff.wait(attempt, 1.0) for attempt in (1, 2, 3, 9)] == pytest.approx([0.1, 0.2, 0.4, 1.0])


def test_a_lost_server_is_found_again_and_the_request_sent_once_more():
    with running() as first:
        client = PolicyClient(first.address, config=QUICK)
        assert client.metadata == METADATA and client.infer({"x": 1})["actions"][0, 0] == 2
    sleeps, revived = [], []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:  # the server is back after two attempts in vain
            revived.append(running(port=first.port))
            revived[0].__enter__()

    client._sleep = sleep
    try:
        assert client.infer({"x": 5})["actions"][0, 0] == 10
    finally:
        revived[0].__exit__(None, None, None)
        client.close()
    assert len(sleeps) == 3 and client.num_reconnects == 1


def test_a_server_that_stays_away_is_an_error_after_the_time_to_give_up():
    with running() as gone:
        pass
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    client = PolicyClient(gone.address, config=QUICK, clock=lambda: now[0], sleep=sleep)
    with pytest.raises(errors.RequestError, match="no answer") as caught:
        client.infer({"x": 1})
    assert "ConnectionRefused" in str(caught.value) and 0.3 < now[0] <= 0.5


def test_a_refused_request_is_not_sent_again_and_the_next_one_is_answered():
    with running() as server, PolicyClient(server.address, config=QUICK) as client:
        with pytest.raises(errors.RequestError, match="RequestError: x"):
            client.infer({"y": 1})
        assert server.server.metrics.requests("bad_request") == 1
        assert client.infer({"x": 1})["actions"][0, 0] == 2 and client.num_reconnects == 1


def test_a_wrong_key_is_not_tried_again():
    sleeps = []
    with running(access=Access(api_keys=(ApiKey("robot", "the right one of 16"),))) as server:
        with pytest.raises(errors.RequestError, match="API key"):
            PolicyClient(server.address, "wrong", QUICK, sleep=sleeps.append).infer({"x": 1})
        with PolicyClient(server.address, "the right one of 16", QUICK) as client:
            assert client.infer({"x": 1})["actions"][0, 0] == 2
    assert sleeps == []


def test_an_answer_that_does_not_come_is_a_lost_connection():
    impatient = ClientConfig(5, answer_timeout=0.1, backoff=Backoff(0.01, give_up=0.05))
    with running() as server, PolicyClient(server.address, config=impatient) as client:
        server.actor.free.clear()
        with pytest.raises(errors.RequestError, match="TimeoutError"):
            client.infer({"x": 1})
        server.actor.free.set()


def test_pictures_are_compressed_and_other_arrays_are_not():
    client = PolicyClient("ws://nowhere", config=ClientConfig(jpeg_quality=90))
    picture = np.zeros((32, 32, 3), np.uint8)
    sent = client._compressed({"a": picture, "b": picture[..., 0], "c": picture.astype(float), "prompt": "x"})
    assert isinstance(sent["a"], bytes) and len(sent["a"]) < 1000
    assert sent["b"].shape == (32, 32) and sent["c"].dtype == float and sent["prompt"] == "x"
    with pytest.raises(errors.ConfigError, match="jpeg_quality"):
        ClientConfig(jpeg_quality=0)


ROBOT = Robot("arm", {"observation/front": (64, 64)}, control_hz=20.0, execution_horizon=2)
FITTING = {
    **METADATA,
    "image_size": [64, 64],
    "action_horizon": 4,
    "control_hz": 20.0,
    "layouts": {"flat": {"cameras": {"observation/front": "front"}, "state": ["observation/state"], "optional": []}},
}


def test_a_server_is_compared_with_the_robot_on_every_connection():
    with running(metadata=FITTING) as first:
        client = PolicyClient(first.address, config=QUICK, robot=ROBOT)
        assert client.infer({"x": 1})["actions"][0, 0] == 2
    slower = {**FITTING, "control_hz": 5.0}
    with running(metadata=slower, port=first.port) as second:  # came back with another policy
        with pytest.raises(errors.RequestError, match="accept 'control_hz'"):
            client.infer({"x": 1})
        with PolicyClient(second.address, config=QUICK, robot=ROBOT, accept=["control_hz"]) as patient:
            assert patient.infer({"x": 1})["actions"][0, 0] == 2


def test_a_robot_may_talk_to_a_server_that_says_nothing_of_its_policy():
    with running(metadata={}) as server, PolicyClient(server.address, config=QUICK, robot=ROBOT) as client:
        assert client.infer({"x": 1})["actions"][0, 0] == 2


def test_the_robots_side_needs_no_jax():
    code = "import sys, vla_jax.serving.client; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_player_asks_once_per_chunk_and_forgets_it_with_the_episode():
    with running() as server, PolicyClient(server.address, config=QUICK) as client:
        player = ChunkPlayer(client)  # executes 2 steps, as the metadata say
        played = [float(player.act({"x": x})[0]) for x in (1, 2, 3)]
        assert played == [2, 2, 6]
        player.end_episode(is_success=False)
        assert player.act({"x": 9})[0] == 18
