"""An S3 server for tests: in RAM, in a process of its own, on this machine only.

    with s3_server("bucket") as endpoint:
        service = S3ArtifactService("s3://bucket/prefix", endpoint=endpoint, options=ANY_CREDENTIALS)

It honours conditions and takes any signature. Needs the package `moto[server]`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ANY_CREDENTIALS = {"access_key_id": "any", "secret_access_key": "any"}
"""Options for a client of the server."""


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """Runs a server with these buckets; gives its address."""
    command = [sys.executable, "-m", "sojourn.testing.s3", *buckets]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise RuntimeError("the S3 server did not start; is moto[server] installed?")
            yield address
        finally:
            process.stdin.close()


def _main(buckets: list[str]) -> None:
    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="any", aws_secret_access_key="any", region_name="us-east-1"
    )
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    # Until whoever started it closes the pipe, or dies.
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _main(sys.argv[1:])
