"""Where an export is put together: nothing is at its output until all of it is there.

On a disk all files are written to a folder beside the output, which is renamed at the end. An
object store has no rename: parts are put under the output itself, indices and manifest last, so an
export without its manifest is none. What is finished has a receipt, under a name that holds the
export's digest: an export that was killed is gone on with, and never mixed with another.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from schemas.errors import StorageError
from schemas.fingerprint import SHORT, canonical_json
from schemas.storage import TEMPORARY, Store, storage_errors
from trainer.export.files import WrittenPart

MANIFEST = "manifest.json"


class ExportFolder:
    """The output of one export. Holds nothing open, so it travels to processes as it is."""

    def __init__(self, output: str, digest: str) -> None:
        """`output` is a path or fsspec URL; `digest` is the export's."""
        self._digest = digest
        self.output = Store(output)
        url = self.output.url
        if self.output.is_local:
            path = Path(url)
            url = str(path.with_name(f"{TEMPORARY}{path.name}-{digest[:SHORT]}"))
        self._staging = Store(url)
        self._receipts = f"{TEMPORARY}export-{digest[:SHORT]}"
        self._begun = f"{self._receipts}/begun"

    def finished(self) -> bytes | None:
        """The manifest of this same export, if it is there already.

        Raises:
            StorageError: something else is there.
        """
        if self.output.is_local and Path(self.output.url).is_file():
            raise StorageError(f"{self.output.url} is a file: name a folder that is not there yet")
        names = {item.name for item in self.output.listing("")}
        if MANIFEST in names:
            manifest = self.output.read(MANIFEST)
            if _digest_in(manifest) == self._digest:
                self._staging.delete_tree(self._receipts)  # of a run killed when all was there
                return manifest
        elif not names or self._begun in names:
            return None
        raise StorageError(
            f"{self.output.url} holds {len(names)} files that are not of this export, for example "
            f"{min(names)}: choose another output, or delete it"
        )

    def begin(self) -> None:
        """Leaves a mark by which an interrupted export knows its own files."""
        self._staging.write(self._begun, b"")

    def written(self) -> dict[str, WrittenPart]:
        """Name -> part, of those that were finished before."""
        names = [item.name for item in self._staging.listing(self._receipts)]
        parts = {}
        for name in names:
            if name.endswith(".json"):
                value = json.loads(self._staging.read(name))
                parts[value["name"]] = WrittenPart.from_json(value["part"])
        return parts

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for the files of one part, gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="export-", dir=self._staging.scratch()) as folder:
            yield Path(folder)

    def add(self, name: str, part: WrittenPart, scratch: Path) -> None:
        """Publishes the files of a part, and then that it is finished."""
        for item in part.files:
            self._staging.publish(scratch / item.name, item.name)
        receipt = {"name": name, "part": part.as_json()}
        self._staging.write(
            f"{self._receipts}/{name.replace('/', '.')}.json", canonical_json(receipt)
        )

    def finish(self, indices: dict[str, bytes], manifest: bytes) -> None:
        """Publishes the export, its manifest last.

        Raises:
            StorageError: it cannot be written, or another process was faster.
        """
        for name, data in indices.items():
            self._staging.write(name, data)
        self._staging.write(MANIFEST, manifest)
        self._staging.delete_tree(self._receipts)
        if self.output.is_local:
            self._staging.delete_tree(self._staging.scratch().name)
            with storage_errors("write", self.output.url):
                Path(self._staging.url).replace(self.output.url)


def _digest_in(manifest: bytes) -> str | None:
    """The digest of an export by its manifest; None where it is no export's."""
    try:
        value = json.loads(manifest)
    except ValueError:
        return None
    found = value.get("digest") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
