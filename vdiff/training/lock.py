"""One training at a time in a run folder."""

import json
import os
import socket
from pathlib import Path

from filelock import BaseFileLock, Timeout

from vdiff.disk import acquire_lock, open_regular
from vdiff.errors import InvalidValue
from vdiff.training.safe_json import read_json


def lock_folder(folder: Path) -> BaseFileLock:
    """Lock a run folder, and write this process into the lock file. Raises InvalidValue with the
    process that holds the lock."""
    path = folder / ".lock"
    try:
        lock = acquire_lock(path)
    except Timeout as error:
        holder, hint = "another process", "wait for it or stop it, or take another folder"
        try:
            content = read_json(path)
            holder = f"process {content['pid']} on {content['host']}"
        except (OSError, ValueError, KeyError):  # it has not written its name yet
            pass
        what = "be used by one training at a time"
        raise InvalidValue("folder", what, f"{holder} in {folder}", hint) from error
    with open(open_regular(path, os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
    return lock
