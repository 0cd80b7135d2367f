import pytest

from vla_jax.core import access as rules
from vla_jax.core import errors
from vla_jax.core.access import Access, ApiKey, RateLimit, is_loopback, make_access

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("VLA_JAX_API_KEY", raising=False)


def test_the_default_is_this_machine_only():
    assert make_access("127.0.0.1") == Access("127.0.0.1", (), None)
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("0.0.0.0") and not is_loopback("robot")


def test_other_machines_need_a_key():
    with pytest.raises(errors.ConfigError, match="can be reached"):
        make_access("0.0.0.0")
    assert make_access("0.0.0.0", allow_anonymous=True).api_keys == ()


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text(KEY + "\n")
    assert make_access("0.0.0.0", api_key_file=str(tmp_path / "key")).api_keys == (ApiKey("line 1", KEY),)
    monkeypatch.setenv("VLA_JAX_API_KEY", KEY)
    assert [key.secret for key in make_access("0.0.0.0").api_keys] == [KEY]
    with pytest.raises(errors.ConfigError, match="--api-key-file"):
        make_access("0.0.0.0", api_key_file=str(tmp_path / "missing"))


def test_a_short_key_is_refused(monkeypatch):
    monkeypatch.setenv("VLA_JAX_API_KEY", "short")
    with pytest.raises(errors.ConfigError, match="too short"):
        make_access("127.0.0.1")


def test_only_the_key_opens():
    access = Access(api_keys=(ApiKey("robot", KEY),))
    assert access.is_allowed(f"Api-Key {KEY}")
    for wrong in (None, "", KEY, f"Bearer {KEY}", f"Api-Key {KEY}x", f"Api-Key {KEY[:-1]}", "Api-Key ключ"):
        assert not access.is_allowed(wrong)
    assert Access().is_allowed(None)


OTHER = "another key of more than 16 characters".replace(" ", "-")


def test_a_file_holds_several_keys_with_names_or_without(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# of the kitchen\n\nkitchen {KEY}\n{OTHER}\n")
    access = make_access("0.0.0.0", api_key_file=str(path))
    assert access.api_keys == (ApiKey("kitchen", KEY), ApiKey("line 4", OTHER))
    assert access.holder(f"Api-Key {KEY}") == "kitchen" and access.holder(f"Api-Key {OTHER}") == "line 4"
    assert access.holder("Api-Key kitchen") is None and KEY not in repr(access)


@pytest.mark.parametrize(
    "text, place",
    [
        ("", "--api-key-file"),
        ("# nothing\n", "--api-key-file"),
        ("arm short", "API key 'arm' is too short"),
        (f"arm {KEY}\nhand {KEY}", "line 2"),
        (f"arm {KEY}\narm {OTHER}", "line 2"),
        (f"my arm {KEY}", "line 1"),
    ],
)
def test_a_file_of_keys_that_cannot_be_meant_is_refused_without_saying_one(tmp_path, text, place):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(errors.ConfigError) as caught:
        make_access("127.0.0.1", api_key_file=str(tmp_path / "keys"))
    assert place in caught.value.place and KEY not in str(caught.value) and OTHER not in str(caught.value)


def test_every_key_is_compared_to_its_end_whichever_is_right(monkeypatch):
    """A comparison that stops early tells by its time how much was right, and where the key stands in the file."""
    compared = []
    whole = rules.hmac.compare_digest
    monkeypatch.setattr(rules.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or whole(a, b))
    access = Access(api_keys=(ApiKey("a", KEY), ApiKey("b", OTHER)))
    for header in (f"Api-Key {KEY}", f"Api-Key {OTHER}", "Api-Key x", "", None):
        compared.clear()
        access.holder(header)
        assert compared == [(32, 32)] * 2  # digests, so not even the length of a key shows


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
