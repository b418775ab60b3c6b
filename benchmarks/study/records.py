"""What came out, a JSON line a run: appended as runs end, so that a study can stop and go on.

Several processes write to one file; each line is one write under a lock. A run that is under way
holds a lock of its own, which its process's death gives back.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Records:
    """The lines of one study, in its folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "runs.jsonl"

    def read(self) -> dict[str, dict[str, Any]]:
        """Key -> what is recorded of a run."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        return {line["key"]: line for line in found}

    def append(self, record: dict[str, Any]) -> None:
        """One line, on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(record, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether a run is for this process: nobody else is at it, and it is not done."""
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        with (locks / key).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield key not in self.read()
