"""Documents as tokens: specials, image sentences and texts put together, any stretch of a window.

Special tokens, texts and image words are copied out of the mapped shards into one pool, and one
`take` with an interleave index copies them on in the order of the documents: every token is moved
twice, and no loop in Python sees a record or a token.

n documents of a stretch; five cells make a document.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.vocabulary import Vocabulary
from trainer.gather import Wanted, cell_values, gather, inline_views
from trainer.order import image_first
from trainer.windows import Window

# Pool cells that hold special tokens; texts follow, then image sentences.
_OPENING, _OPENING_IMAGE, _IMAGE_START, _IMAGE_END, _CLOSING, _CLOSING_IMAGE, _NONE = range(7)
_NUM_SPECIAL_CELLS = 7
_SPECIAL_ORDER = np.array(
    [
        [_OPENING, 0, _NONE, 0, _CLOSING],  # text alone
        [_OPENING, 0, _IMAGE_START, 0, _CLOSING_IMAGE],  # text first
        [_OPENING_IMAGE, 0, _IMAGE_END, 0, _CLOSING],  # image first
    ],
    np.int32,
)
"""Pool cells of the three kinds of documents; 0 where texts and images go."""


@dataclass(frozen=True, kw_only=True)
class DocumentForm:
    """What a document is made of."""

    vocabulary: Vocabulary
    image_first: float
    """The share of documents whose image comes first."""
    bos: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """What holds an id until batches widen it: the narrower, the less is copied."""
        return np.dtype(np.uint16 if self.vocabulary.size < 1 << 16 else np.int32)

    def special_cells(self) -> list[list[int]]:
        """The special tokens before, between and after, by pool cell."""
        words = self.vocabulary
        start = [words.bos] if self.bos else []
        image, end = [words.image_start], [words.image_end]
        return [start, [*start, *image], image, end, [words.eos], [*end, words.eos], []]

    @cached_property
    def special_views(self) -> NDArray[np.void]:
        """The same as views."""
        return inline_views([np.array(cell, self.dtype).tobytes() for cell in self.special_cells()])


class Stretch(NamedTuple):
    """Some consecutive tokens of a virtual stream."""

    ids: NDArray[Any]
    """(tokens,) joint ids, uint16 or int32."""
    document_starts: NDArray[np.int64]
    """Where documents begin, ascending, from the stretch's first token."""


class Documents(NamedTuple):
    """Some consecutive documents of a window."""

    batches: NDArray[np.unsignedinteger]
    """(n,) record batch of each."""
    text_begins: NDArray[np.int64]
    text_lengths: NDArray[np.int64]
    """(n,) where each text lies in its batch; a copy, that may be cut."""
    image_begins: NDArray[np.int32]
    image_lengths: NDArray[np.int32]
    """(n,) where each image sentence does, place words included."""
    image_first: NDArray[np.bool_]
    """(n,) whether the image comes first; False for text alone."""
    has_image: NDArray[np.bool_]
    """(n,)"""


def find_documents(window: Window, first: int, last: int, *, share: float) -> Documents:
    """The documents `first` up to, not including, `last`; `share` of the pairs image-first."""
    these = slice(first, last)
    has_image = window.image.lengths[these] > 0
    return Documents(
        batches=window.batch_numbers[these],
        text_begins=window.text.begins[these].astype(np.int64),
        text_lengths=window.text.lengths[these].astype(np.int64),
        image_begins=window.image.begins[these],
        image_lengths=window.image.lengths[these],
        image_first=has_image & image_first(window.order[these], window.directions_key, share),
        has_image=has_image,
    )


def assemble(window: Window, start: int, stop: int, *, form: DocumentForm) -> Stretch:
    """The tokens `start` up to, not including, `stop` of a window; 0 <= start < stop <= its end."""
    kind = window.starts.dtype.type
    first = int(np.searchsorted(window.starts, kind(start), side="right")) - 1
    last = int(np.searchsorted(window.starts, kind(stop), side="left"))
    starts = window.starts[first : last + 1]
    documents = find_documents(window, first, last, share=form.image_first)
    dropped = _trim_texts(documents, starts, (start, stop), bos=form.bos)
    pool = _pool(window, documents, slice(first, last), form)
    ids = cell_values(pool.take(pa.array(_cell_order(documents).ravel())), form.dtype)
    skip = start - int(starts[0]) - dropped
    document_starts = starts[:-1].astype(np.int64) - start
    return Stretch(ids[skip : skip + stop - start], document_starts[document_starts >= 0])


def _trim_texts(
    documents: Documents, starts: NDArray[np.integer], wanted: tuple[int, int], *, bos: bool
) -> int:
    """Cuts the first and the last text down to what is wanted, in place.

    A book may span hundreds of sequences: without this, each of them would copy all of it.

    Args:
        documents: some documents.
        starts: (n + 1,) where they begin in the window, and the last one's end.
        wanted: the first and one past the last token that is wanted.
        bos: whether a document begins with [BOS].

    Returns:
        Tokens dropped from the front of the first text.
    """
    begins, lengths = documents.text_begins, documents.text_lengths
    first, last = (_text_place(documents, starts, index, bos=bos) for index in (0, -1))
    lengths[-1] -= max(0, min(int(lengths[-1]), last + int(lengths[-1]) - wanted[1]))
    dropped = max(0, min(int(lengths[0]), wanted[0] - first))
    begins[0] += dropped
    lengths[0] -= dropped
    return dropped


def _text_place(documents: Documents, starts: NDArray[np.integer], index: int, *, bos: bool) -> int:
    """Where the text of the first (0) or last (-1) document begins in the window."""
    if documents.image_first[index]:  # text and [EOS] are the end
        return int(starts[1:][index]) - 1 - int(documents.text_lengths[index])
    return int(starts[:-1][index]) + int(bos)


def _pool(window: Window, documents: Documents, these: slice, form: DocumentForm) -> pa.Array:
    """The cells that documents are made of: specials, n texts and n image sentences, joint ids."""
    batches = documents.batches
    texts = Wanted(window.text, batches, documents.text_begins, documents.text_lengths)
    images = Wanted(window.image, batches, documents.image_begins, documents.image_lengths)
    if window.num_codes is not None:
        return _converted_pool(texts, images, window.num_codes[these], form)
    if not window.text.itemsize == window.image.itemsize == form.dtype.itemsize:
        return _converted_pool(texts, images, None, form)
    pool = gather([texts, images], before=form.special_views)
    words = cell_values(pool, form.dtype)
    num_images = int(images.lengths.sum())
    words[len(words) - num_images :] += form.dtype.type(form.vocabulary.image_offset)
    return pool


def _converted_pool(
    texts: Wanted, images: Wanted, num_codes: NDArray[np.int32] | None, form: DocumentForm
) -> pa.Array:
    """The same where ids are wider than what is stored, or place words are left out."""
    specials = form.special_cells()
    words = cell_values(gather([images]), f"<u{images.column.itemsize}")
    lengths = images.lengths
    if num_codes is not None:
        words, lengths = words[words >= form.vocabulary.num_places], num_codes
    sizes = np.concatenate([[len(cell) for cell in specials], texts.lengths, lengths])
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes * form.dtype.itemsize, out=offsets[1:])
    parts = [
        np.array([word for cell in specials for word in cell]),
        cell_values(gather([texts]), f"<u{texts.column.itemsize}"),
        words.astype(form.dtype) + form.dtype.type(form.vocabulary.image_offset),
    ]
    pool = np.concatenate([part.astype(form.dtype, copy=False) for part in parts])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(pool)]
    return pa.Array.from_buffers(pa.large_binary(), len(sizes), buffers, null_count=0)


def _cell_order(documents: Documents) -> NDArray[np.int32]:
    """(n, 5) the pool cells of each document.

    image first [BOS][IMG], image, [/IMG], text, [EOS]; text first [BOS], text, [IMG], image,
    [/IMG][EOS]; text alone [BOS], text, nothing, an image of no words, [EOS].
    """
    num = len(documents.batches)
    order = _SPECIAL_ORDER[documents.has_image.astype(np.int64) + documents.image_first]
    texts = np.arange(_NUM_SPECIAL_CELLS, _NUM_SPECIAL_CELLS + num)
    swap = documents.image_first * num
    order[:, 1] = texts + swap
    order[:, 3] = texts + (num - swap)
    return order
