"""Locks of files, which keep two processes from writing to one file at the same time.

They are the kernel's (flock): they end with the process, however it ends. On a file system without locks, and on
Windows, nothing guards against two writers.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    LOCKS = False
else:
    LOCKS = True

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def take(file: io.FileIO, wait: bool = False) -> bool:
    """Takes the file's lock, which ends when the file is closed. Returns False only if another process holds it: where
    there are no locks it returns True."""
    if not LOCKS:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno not in _NO_LOCKS:
            raise
    return True


@contextlib.contextmanager
def held(file: io.FileIO) -> Iterator[None]:
    """Holds the file's lock during the block; waits while another process holds it."""
    take(file, wait=True)
    try:
        yield
    finally:
        if LOCKS:
            with contextlib.suppress(OSError):
                fcntl.flock(file.fileno(), fcntl.LOCK_UN)
