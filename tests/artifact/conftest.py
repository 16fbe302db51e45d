"""S3 servers that the tests of a process share."""

import pytest

from tests.artifact.s3_servers import moto, nanio


@pytest.fixture(scope="session")
def moto_port():
    with moto() as port:
        yield port


@pytest.fixture(scope="session")
def nanio_port(tmp_path_factory):
    with nanio(tmp_path_factory.mktemp("nanio")) as port:
        yield port
