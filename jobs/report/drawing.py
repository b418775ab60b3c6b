"""What draws the pictures behind a version's codes: the tokenizer that its declaration names.

It may have moved, been trained anew or have no pixel decoder. A page is worth having without its
drawings, so that is no error but a line on the page. Opening a tokenizer costs the import of torch,
about two seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.report.stored import StoredSentence
from schemas.declaration import parse_declaration, resolve
from schemas.errors import ArtifactError, StorageError
from schemas.storage import Store, storage_errors
from tokenizer.pictures import CodeDrawer


@dataclass(frozen=True, slots=True)
class Drawing:
    """What draws codes, or why nothing does."""

    drawer: CodeDrawer | None
    why_not: str = ""
    """Where there is no drawer."""

    def draw(self, sentences: Sequence[StoredSentence]) -> list[NDArray[np.uint8] | None]:
        """A picture of (S, S, 3) RGB for each; None for all without a drawer."""
        if self.drawer is None or not sentences:
            return [None] * len(sentences)
        masks = np.stack([sentence.keep_mask for sentence in sentences])
        codes = np.concatenate([sentence.codes for sentence in sentences])
        return [*self.drawer.draw(masks, codes)]


def open_drawing(store: Store, declaration: str, *, fingerprint: str) -> Drawing:
    """The drawer for codes of a version.

    Args:
        store: the corpus.
        declaration: the version's.
        fingerprint: of the tokenizer that wrote the codes.
    """
    location = parse_declaration(declaration).tokenizer
    if location is None:
        return Drawing(None, "the declaration names no tokenizer")
    return open_drawer(resolve(location, store), fingerprint=fingerprint)


def open_drawer(url: str, *, fingerprint: str | None) -> Drawing:
    """The drawer for codes that the tokenizer of this fingerprint wrote, if it lies at `url`."""
    try:
        with storage_errors("read", url):
            return Drawing(CodeDrawer.load(url, fingerprint=fingerprint))
    except (ArtifactError, StorageError) as error:
        return Drawing(None, str(error))
