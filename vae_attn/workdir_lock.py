"""One command at a time in a workdir: two would overwrite each other's checkpoints and figures."""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket

from vae_attn.errors import UserError
from vae_attn.training import distributed

_LOG = logging.getLogger("vae_attn")


class WorkdirLock:
    """Held by a command, within `with`, in the folders that it writes.

    It is the kernel's lock on `.lock` in the folder, which ends with the process however that
    ends; the file stays, and tells nothing by being there. Of several processes the main one
    holds it for all.
    """

    def __init__(self) -> None:
        self._files: dict[pathlib.Path, int] = {}

    def __enter__(self) -> "WorkdirLock":
        """Holds nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Gives all back."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def take(self, *folders: pathlib.Path) -> None:
        """Takes folders, which are created if missing; those it holds already are no matter.

        A file system without locks only warns. A folder that cannot be made is left to whoever
        writes there next, to tell.

        Raises:
          UserError: in all processes, if another command holds one of them; nothing in it has
            been changed.
        """
        refused = ""
        for folder in folders if distributed.is_main() else ():
            if folder not in self._files and not refused:
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
        path = folder / ".lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            _warn(folder, error)
            return ""
        self._files[folder] = file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            return (
                f"--workdir={folder} is in use by {holder}: wait for it or end it, or give "
                "another --workdir."
            )
        except OSError as error:
            _warn(folder, error)
            return ""
        with contextlib.suppress(OSError):  # a full disk; what is written next tells
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return ""


def _warn(folder: pathlib.Path, error: OSError) -> None:
    _LOG.warning("%s cannot be locked (%s): see that one command at a time uses it.", folder, error)
