"""One process at a time: a lock that a dead process cannot hold."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunekit.support.errors import FileError, UsageError
from prunekit.support.progress import say

_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(path: Path, output: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while ``output`` is made; an error names who holds it already.

    The system gives the lock back when the process ends, in whatever way; the file that a killed
    one leaves behind locks nothing. On a file system without locks a note is all there is. Folders
    made for the lock go with it if nothing else came into them.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    handle = _lock(path, output)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: nobody else's
        os.close(handle)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _lock(path: Path, output: Path) -> int:
    """An open handle to the locked file; the file may go between opening and locking."""
    if sys.platform == "win32":
        return _opened(path)
    import fcntl

    while True:
        handle = _opened(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                say(f"note: no locks at {path.parent}; let no other profile write {output}")
                return handle
            holder = os.read(handle, 300).decode(errors="replace").strip() or "another process"
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise UsageError(
                    f"{holder} is measuring for {output} already; wait for its end or give "
                    "another -o"
                ) from None
            raise FileError(f"cannot lock {path}: {error.strerror or error}") from error
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
                return handle
        os.close(handle)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
