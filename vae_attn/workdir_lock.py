"""One command at a time in a workdir: two would overwrite each other's checkpoints and figures."""

import contextlib
import logging
import os
import pathlib
import socket

import filelock

from vae_attn.errors import UserError, shown
from vae_attn.training import distributed

_LOG = logging.getLogger("vae_attn")


class WorkdirLock:
    """Held by a command, within `with`, in the folders that it writes.

    It is the kernel's lock on `.lock` in the folder, which ends with the process however that
    ends; the file stays, and means nothing by itself. Of several processes the main one holds it
    for all.
    """

    def __init__(self) -> None:
        self._locks: dict[pathlib.Path, filelock.BaseFileLock] = {}

    def __enter__(self) -> "WorkdirLock":
        """Holds nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Releases all folders."""
        for lock in self._locks.values():
            lock.release(force=True)
        self._locks.clear()

    def take(self, *folders: pathlib.Path) -> None:
        """Takes folders, which are created if missing, unless it holds them already.

        A file system without locks only causes a warning. A folder that cannot be created is left
        for whoever writes there next to report.

        Raises:
          UserError: in all processes, if another command holds one of them; nothing in it has
            been changed.
        """
        refused = ""
        for folder in folders if distributed.is_main() else ():
            if folder not in self._locks and not refused:
                refused = self._take(folder)
        # The main process' sentence is printed by it alone; the others only have to end too.
        if distributed.any_process(bool(refused)):
            raise UserError(refused or "another command works in this workdir; see process 0.")

    def _take(self, folder: pathlib.Path) -> str:
        """Why not, in a sentence; nothing if it is taken, or cannot be locked."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return ""
        # The soft lock that would stand in where the kernel has none outlives a killed process.
        lock = filelock.FileLock(folder / ".lock", fallback_to_soft=False)
        # Not in the lock's own file, which some versions of filelock empty on a mere attempt.
        holder = folder / ".holder"
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return (
                f"--workdir={folder} is in use by {_read_holder(holder)}: wait for it or end it, "
                "or give another --workdir."
            )
        except (OSError, NotImplementedError) as error:
            _LOG.warning(
                "%s cannot be locked (%s): make sure that one command at a time uses it.",
                folder,
                error,
            )
            return ""
        self._locks[folder] = lock
        with contextlib.suppress(OSError):  # a full disk, which the next file will report
            text = f"process {os.getpid()} on {socket.gethostname()}"
            holder.write_text(text, encoding="utf-8")
        return ""


def _read_holder(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError):
        return shown(path.read_text(encoding="utf-8", errors="replace")) or "another process"
    return "another process"
