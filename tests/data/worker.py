"""A process to be killed while it prunes, erases, backs up or restores.

Started as a program, it makes one such process for each line it reads, by `fork`, so that none has to be loaded anew.
"""

import asyncio
import json
import os
import signal
import sys
import traceback

from sojourn.artifact.file import FileArtifactService
from sojourn.data import DataCare, Retention, restore_backup
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.store.sqlite.service import SqliteSessionService
from tests.data.support import APP


def opened(place):
    if "://" in place:
        return PostgresSessionService(place, role="client")
    return SqliteSessionService(place, synchronous="normal", role="client")


async def work(directory, place, what):
    if what.startswith("restore"):
        await restore_backup(f"{directory}/backup{what[-1]}.db", place)
        return
    store = opened(place)
    care = DataCare(store, artifacts=FileArtifactService(f"{directory}/artifacts"))
    if what == "prune":
        await care.prune(APP, Retention(max_events=15))
    elif what == "drop":
        await care.prune(APP, Retention(ttl=0.0))
    elif what == "erase":
        await care.erase("alice")
    else:
        await care.backup(f"{directory}/backup.db", overwrite=True)
    await store.close()


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        directory, place, what = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        code = 1
        try:
            asyncio.run(work(directory, place, what))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


if __name__ == "__main__":
    main()
