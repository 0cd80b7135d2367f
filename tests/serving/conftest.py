"""One tiny checkpoint for all tests of this folder."""

import pytest

from tests.serving import toy_policy
from vla_jax.training import trained


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return toy_policy.write_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def policy(checkpoint):
    return trained.load(checkpoint)
