"""Keeps a server up while a process uses it. conftest.py runs it as a separate process, which may outlive the process
that started it.

    python keep.py USERS LOG COMMAND...

Every user of the server holds a shared lock on the file USERS. A process loses its locks when it ends for any reason:
done, interrupted or killed. When no lock is left, or the server has ended, the server's process group is killed.
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
                os.killpg(server.pid, signal.SIGKILL)  # processes that ignored SIGTERM, and children that are left


def alone(file) -> bool:
    """Whether no other process holds the lock. Then this process takes it, and a new user waits for the
    server's end."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main()
