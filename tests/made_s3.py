"""An S3 server on loopback (moto's), with the environment that finds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def served_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """(host, port) of an empty server; the environment names it as the endpoint while it runs."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # those of an earlier server keep its address
    try:
        yield host, port
    finally:
        server.stop()
