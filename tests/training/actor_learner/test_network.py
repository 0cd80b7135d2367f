"""A learner's server and an actor's link over loopback, in one process."""

import contextlib
import threading
import time

import numpy as np
import pytest

from tests.training.actor_learner.toy import ABSTRACT, ROW, LineEnv, ToyLearner
from vla_jax.core import errors
from vla_jax.core.access import Access, ApiKey
from vla_jax.core.backoff import Backoff
from vla_jax.data.replay.host import HostBuffer
from vla_jax.training.actor_learner import messages
from vla_jax.training.actor_learner.actor import Actor
from vla_jax.training.actor_learner.inbox import Inbox
from vla_jax.training.actor_learner.link import ActorLink, run
from vla_jax.training.actor_learner.server import LearnerServer, ServerConfig
from vla_jax.training.actor_learner.sources import ActorLearnerConfig, ActorLearnerSource
from vla_jax.training.actor_learner.spool import Spool

PARAMS = {"policy": {"bias": np.full(1, 0.4, np.float32)}}
KEY = "0123456789abcdef"
TIMEOUT = 30.0
QUICK = Backoff(first=0.01, longest=0.05)


def served(access=None, port=0, buffer=None):
    return LearnerServer(Inbox(buffer or HostBuffer(ROW, 4096)), ROW, access, ServerConfig(port=port))


@contextlib.contextmanager
def serving(**options):
    server = served(**options).start()
    server.publish(0, PARAMS)
    try:
        yield server
    finally:
        server.close()


def link_to(server, spool, name="arm", **options):
    return ActorLink(server.address, name, ROW, spool, backoff=QUICK, timeout=TIMEOUT, **options)


def actor(seed=0, seconds=0.0):
    return Actor(LineEnv(seconds), ToyLearner(), seed=seed)


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_rows_arrive_in_order_and_parameters_come_back():
    spool = Spool(ROW)
    with serving() as server, link_to(server, spool) as link:
        version, params = link.latest(TIMEOUT)
        assert version == 0 and float(params["policy"]["bias"][0]) == pytest.approx(0.4)
        assert run(actor(), link, spool, num_decisions=30) == 30
        assert link.drain(TIMEOUT)
        server.publish(7, {"policy": {"bias": np.full(1, 2.0, np.float32)}})
        wait_for(lambda: link.latest(TIMEOUT)[0] == 7)
        buffer = server.inbox.buffer
        assert buffer.num_inserted == spool.next_number > 30  # and one row more for every end
        # within an episode the step counter goes on by what was run: nothing is missing and nothing comes twice
        batch = buffer.sample(np.random.default_rng(0), (500,))
        went = batch.next_observation.state[:, 1] - batch.observation.state[:, 1]
        np.testing.assert_array_equal(went, batch.action_mask.sum(axis=1))


def test_an_actor_finds_its_learner_again_and_sends_what_is_missing():
    spool, buffer = Spool(ROW), HostBuffer(ROW, 4096)
    with serving(buffer=buffer) as first, link_to(first, spool) as link:
        run(actor(), link, spool, num_decisions=5)
        assert link.drain(TIMEOUT)
        port = int(first.address.rpartition(":")[2])
        first.close()
        run_offline = actor(seed=1)
        for _ in range(20):
            for row in run_offline.decide(*reversed(link.latest(TIMEOUT))):
                spool.add(row)
        link.wake()
        assert len(spool) > 20 and buffer.num_inserted < spool.next_number
        with serving(buffer=buffer, port=port):
            assert link.drain(TIMEOUT)
    assert link.num_connections == 2
    assert buffer.num_inserted == buffer.expected("arm") == spool.next_number


def test_an_acknowledgement_that_got_lost_does_no_harm():
    """The rows are stored, the actor does not know it: it sends them again, and they are dropped."""
    spool, buffer = Spool(ROW), HostBuffer(ROW, 64)
    inbox, walker = Inbox(buffer), actor()
    for _ in range(4):
        for row in walker.decide(PARAMS, 0):
            spool.add(row)
    inbox.accept("arm", spool.batch())
    stored = buffer.num_inserted
    assert inbox.accept("arm", spool.batch()) == stored == buffer.num_inserted
    assert len(inbox._staleness) == stored  # metrics count them once, too
    with serving(buffer=buffer) as server, link_to(server, spool) as link:
        assert link.drain(TIMEOUT)  # by the welcome alone
    assert buffer.num_inserted == stored


def test_an_actor_that_remembers_nothing_is_told_where_it_was():
    """Numbers that begin at 0 again would all be taken for rows sent twice."""
    with serving() as server:
        stored = [0]
        for seed in (0, 1):
            spool = Spool(ROW)
            with link_to(server, spool) as link:
                run(actor(seed), link, spool, num_decisions=5)
                assert link.drain(TIMEOUT)
            stored.append(server.inbox.buffer.num_inserted)
        assert stored[2] - stored[1] >= 5 and stored[2] == spool.next_number


def test_what_never_changes_is_not_sent():
    config = ActorLearnerConfig(shape=(4,), training_starts=2)
    source = ActorLearnerSource(served(), config, select=lambda params: {"policy": params["policy"]}, patience=TIMEOUT)
    spool = Spool(ROW)
    link = link_to(source._server, spool, assemble=lambda sent: {**sent, "frozen": np.full(2, 5.0)})
    acting = threading.Thread(target=lambda: run(actor(), link, spool, num_decisions=4, timeout=TIMEOUT), daemon=True)
    try:
        link.start()
        acting.start()
        source.next(0, {**PARAMS, "frozen": np.zeros(10**6)})
        assert len(source._server._params) < 1000
        assert link.latest(TIMEOUT)[1]["frozen"].tolist() == [5, 5]
        acting.join(TIMEOUT)
    finally:
        link.close()
        source.close()


def test_a_message_is_no_larger_than_it_may_be():
    spool, walker = Spool(ROW), actor()
    while spool.next_number < 10:
        for row in walker.decide(PARAMS, 0):
            spool.add(row)
    row_bytes = 8 + 4 + 1 + 8 + 8 + 8 + 2 + 1  # state, prompt and its mask; actions, rewards, discounts, mask; tag
    assert len(spool.batch(max_bytes=3 * row_bytes)) == 3
    assert len(spool.batch(max_bytes=3 * row_bytes - 1)) == 2
    assert len(spool.batch(max_bytes=1)) == 1 and len(spool.batch(max_rows=4)) == 4


def test_the_key_opens_and_a_wrong_one_is_final():
    with serving(access=Access(api_keys=(ApiKey("arm", KEY),))) as server:
        with link_to(server, Spool(ROW), api_key=KEY) as link:
            assert link.latest(TIMEOUT)[0] == 0
        for wrong in (None, KEY + "x"):
            with (
                link_to(server, Spool(ROW), api_key=wrong) as link,
                pytest.raises(errors.RequestError, match="refused"),
            ):
                link.latest(TIMEOUT)


def test_an_actor_with_other_rows_is_refused_by_name():
    other = ROW.replace(actions=np.zeros((3, 1), np.float32))
    with serving() as server:
        link = ActorLink(server.address, "arm", other, Spool(other), backoff=QUICK)
        with link, pytest.raises(errors.RequestError, match=r"(?s)'arm' sends other rows.*float32\[2, 1\]"):
            link.latest(TIMEOUT)


def test_the_same_actor_coming_again_replaces_the_connection_that_was_lost():
    with serving() as server, link_to(server, Spool(ROW)) as first:
        first.latest(TIMEOUT)
        assert server.num_actors == 1
        again = ActorLink(server.address, "arm", ROW, Spool(ROW), backoff=Backoff(first=20, longest=20))
        with again:
            again.latest(TIMEOUT)
            assert server.num_actors == 1


def test_rows_that_cannot_be_stored_stop_the_learner_and_not_the_actor(monkeypatch):
    spool = Spool(ROW)
    with serving() as server, link_to(server, spool) as link:
        monkeypatch.setattr(server.inbox.buffer, "append", _full_disk)
        link.latest(TIMEOUT)
        for row in actor().decide(PARAMS, 0):
            spool.add(row)
        link.wake()
        wait_for(lambda: server._failure is not None)
        with pytest.raises(errors.TrainingError, match="No space left"):
            server.check()
        link.check()
        assert len(spool) >= 1


def _full_disk(*args):
    raise OSError(28, "No space left on device")


def test_a_spool_on_disk_outlives_its_actor_and_drops_only_what_nobody_has(tmp_path):
    walker, spool = actor(), Spool(ROW, tmp_path, max_rows=6)
    while spool.next_number < 8:
        for row in walker.decide(PARAMS, 5):
            spool.add(row)
    lost = spool.next_number - 6
    assert spool.num_lost == lost and len(list(tmp_path.iterdir())) == 6
    again = Spool(ROW, tmp_path)
    assert again.next_number == spool.next_number
    ours, theirs = spool.batch(), again.batch()
    assert ours.first_number == theirs.first_number == lost and theirs.versions.tolist() == [5] * 6
    np.testing.assert_array_equal(ours.rows.observation.state, theirs.rows.observation.state)
    again.acknowledge(lost + 4)
    assert len(again) == 2 and sorted(int(f.stem) for f in tmp_path.iterdir()) == [lost + 4, lost + 5]
    again.acknowledge(100)  # a learner that knows more of this actor than the actor itself
    assert len(again) == 0 and again.next_number == 100
    (tmp_path / "3.row").write_bytes(b"\x80")
    with pytest.raises(errors.DataError, match=r"3\.row"):
        Spool(ROW, tmp_path)


def test_a_slow_actor_holds_up_no_learner_and_acts_on_fresh_parameters():
    """Updates of 5 ms, an actor that sleeps 50 ms per decision, a version every 30 updates."""
    config = ActorLearnerConfig(shape=(32,), training_starts=4, publish_every=30)
    source = ActorLearnerSource(served(), config, patience=TIMEOUT)
    spool, stop = Spool(ROW), threading.Event()
    link = link_to(source._server, spool)
    acting = threading.Thread(
        target=lambda: run(actor(seconds=0.05), link, spool, should_stop=stop.is_set, timeout=TIMEOUT), daemon=True
    )

    def updates(step, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            _, metrics = source.next(step, PARAMS)
            time.sleep(0.005)
            step += 1
        return step, metrics

    try:
        link.start()
        acting.start()
        start, _ = updates(0, 0.3)  # compiling is over, rows are there
        source._server.inbox._staleness.clear()
        with_actor, metrics = updates(start, 1.5)
        stop.set()
        acting.join(TIMEOUT)
        link.close()
        alone, _ = updates(with_actor, 1.5)
    finally:
        stop.set()
        source.close()
    assert with_actor - start > 0.6 * (alone - with_actor)
    assert len(source._server.inbox._staleness) > 5
    assert metrics["collect/max_staleness"] <= 2 * config.publish_every
    assert metrics["collect/actors"] == 1


def test_parameters_travel_with_their_types():
    import jax.numpy as jnp

    params = {"a": {"b": jnp.full((2, 3), 1.5, jnp.bfloat16)}, "c": np.arange(3), "d": np.float32(2)}
    version, back = messages.unpack_params(messages.unpack(messages.pack_params(9, params), "params"))
    assert version == 9 and back["a"]["b"].dtype == jnp.bfloat16 and back["a"]["b"].tolist() == [[1.5] * 3] * 2
    assert back["c"].tolist() == [0, 1, 2] and back["d"].shape == ()
    assert ABSTRACT.keys() == {"policy"}


@pytest.mark.parametrize(
    "change, place",
    [
        ({"first_number": -1}, "first_number"),
        ({"versions": np.zeros(3, np.int64)}, "versions"),
        ({"is_first": np.zeros(0, bool)}, "is_first"),
        ({"names": ["x"]}, "names and leaves"),
        ({"kind": "params"}, "kind"),
    ],
)
def test_rows_that_are_none_are_refused_by_field(change, place):
    spool = Spool(ROW)
    for row in actor().decide(PARAMS, 0):
        spool.add(row)
    fields = messages.unpack(messages.pack_rows(spool.batch()), "rows") | change
    kind = fields.pop("kind")
    with pytest.raises(errors.RequestError, match=place):
        messages.unpack_rows(messages.pack(kind, **fields), ROW)
