"""Keeps a server up for as long as somebody uses it. Run by conftest.py, as a process of its own that outlives whoever
began it.

    python keep.py USERS LOG COMMAND...

Everybody who uses the server holds a shared lock on the file USERS, and a process loses its locks however it ends:
when it is done, interrupted or killed. Once there is none left, or the server is gone, its process group is killed.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time


def main() -> None:
    users, log, *command = sys.argv[1:]
    with open(users) as file, open(log, "wb") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while server.poll() is None and not alone(file):
                time.sleep(0.3)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(10)
                os.killpg(server.pid, signal.SIGKILL)  # what did not listen, and children that stayed behind


def alone(file) -> bool:
    """Whether nobody else holds the lock; it is ours then, and whoever comes waits until the old server is gone."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main()
