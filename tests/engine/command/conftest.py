"""A port on which nobody listens."""

import socket

import pytest


@pytest.fixture
def unused_port():
    """Bound for as long as the test runs, so that nobody else takes it; who connects to it is refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
