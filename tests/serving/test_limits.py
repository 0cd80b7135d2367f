import pytest

from vla_jax.core import errors
from vla_jax.serving.limits import Access, RateLimit, is_loopback, make_access

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("VLA_JAX_API_KEY", raising=False)


def test_the_default_is_this_machine_only():
    assert make_access("127.0.0.1") == Access("127.0.0.1", None, None)
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("0.0.0.0") and not is_loopback("robot")


def test_other_machines_need_a_key():
    with pytest.raises(errors.ConfigError, match="can be reached"):
        make_access("0.0.0.0")
    assert make_access("0.0.0.0", allow_anonymous=True).api_key is None


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text(KEY + "\n")
    assert make_access("0.0.0.0", api_key_file=str(tmp_path / "key")).api_key == KEY
    monkeypatch.setenv("VLA_JAX_API_KEY", KEY)
    assert make_access("0.0.0.0").api_key == KEY
    with pytest.raises(errors.ConfigError, match="--api-key-file"):
        make_access("0.0.0.0", api_key_file=str(tmp_path / "missing"))


def test_a_short_key_is_refused(monkeypatch):
    monkeypatch.setenv("VLA_JAX_API_KEY", "short")
    with pytest.raises(errors.ConfigError, match="too short"):
        make_access("127.0.0.1")


def test_only_the_key_opens():
    access = Access(api_key=KEY)
    assert access.is_allowed(f"Api-Key {KEY}")
    for wrong in (None, "", KEY, f"Bearer {KEY}", f"Api-Key {KEY}x", f"Api-Key {KEY[:-1]}", "Api-Key ключ"):
        assert not access.is_allowed(wrong)
    assert Access().is_allowed(None)


def test_half_a_certificate_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match="both or none"):
        make_access("127.0.0.1", tls_certificate="x.pem")
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(errors.ConfigError, match="PEM"):
        make_access("127.0.0.1", tls_certificate=str(tmp_path / "x.pem"), tls_key=str(tmp_path / "x.pem"))


def test_a_bucket_gives_a_burst_and_then_its_rate():
    now = [0.0]
    limit = RateLimit(rate=2.0, burst=3.0, clock=lambda: now[0])
    assert [limit.take("a") for _ in range(5)] == [True, True, True, False, False]
    assert limit.take("b")  # another address has its own
    now[0] = 0.5  # one token later
    assert [limit.take("a") for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [limit.take("a") for _ in range(4)] == [True, True, True, False]


def test_addresses_are_forgotten_so_that_memory_is_bounded():
    limit = RateLimit(1.0, 1.0, clock=lambda: 0.0)
    for i in range(10_000):
        limit.take(str(i))
    assert len(limit._buckets) == 4096


@pytest.mark.parametrize("rate, burst", [(0.0, 1.0), (1.0, 0.5)])
def test_impossible_rates_are_refused(rate, burst):
    with pytest.raises(errors.ConfigError, match="rate limit"):
        RateLimit(rate, burst)
