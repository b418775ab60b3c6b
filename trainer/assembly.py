"""Documents as tokens: specials, image sentences and texts put together, any stretch of a window.

Text and image words are copied out of the mapped shards into one pool, and one `take` with an
interleave index copies them on in the order of the documents: every token is moved twice, and no
loop in Python sees a record or a token.

n documents of a stretch; five cells make a document.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.vocabulary import Vocabulary
from trainer.gather import cell_bytes, gather
from trainer.order import image_first
from trainer.windows import Window, WindowColumn

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


@dataclass(frozen=True, kw_only=True, slots=True)
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


class Stretch(NamedTuple):
    """Some consecutive tokens of a virtual stream."""

    ids: NDArray[Any]
    """(tokens,) joint ids, uint16 or int32."""
    document_starts: NDArray[np.int64]
    """Where documents begin, ascending, from the stretch's first token."""


class Documents(NamedTuple):
    """Some consecutive documents of a window."""

    records: NDArray[np.int64]
    """(n,) place in the window before it is permuted."""
    batches: NDArray[np.int64]
    """(n,) record batch of each."""
    image_first: NDArray[np.bool_]
    """(n,) whether the image comes first; False for text alone."""
    has_image: NDArray[np.bool_]
    """(n,)"""


def find_documents(window: Window, first: int, last: int, *, share: float) -> Documents:
    """The documents `first` up to, not including, `last`, in the order in which they are read."""
    records = window.order[first:last].astype(np.int64)
    batches = window.batch_numbers[records].astype(np.int64)
    cells = records + batches
    has_image = window.image.offsets[cells + 1] > window.image.offsets[cells]
    drawn = image_first(records, window.directions_key, share)
    return Documents(records, batches, drawn & has_image, has_image)


def assemble(window: Window, start: int, stop: int, *, form: DocumentForm) -> Stretch:
    """The tokens `start` up to, not including, `stop` of a window; 0 <= start < stop <= its end."""
    starts = window.starts
    kind = starts.dtype.type
    first = int(np.searchsorted(starts, kind(start), side="right")) - 1
    last = int(np.searchsorted(starts, kind(stop), side="left"))
    documents = find_documents(window, first, last, share=form.image_first)
    begin, lengths = _text_cells(window, documents)
    dropped = _trim_texts(begin, lengths, documents, (start, stop), starts[first : last + 1], form)
    texts = gather(window.text, documents.batches, begin, lengths)
    images, image_lengths = _images(window, documents, form)
    ids = _interleave(documents, texts, lengths, images, image_lengths, form)
    skip = start - int(starts[first]) - dropped
    document_starts = starts[first:last].astype(np.int64) - start
    return Stretch(ids[skip : skip + stop - start], document_starts[document_starts >= 0])


def _cell_ranges(
    column: WindowColumn, documents: Documents
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n,) first value and (n,) values of each document's cell."""
    cells = documents.records + documents.batches  # each batch has one offset more than records
    begin = column.offsets[cells].astype(np.int64)
    return begin, column.offsets[cells + 1] - begin


def _text_cells(
    window: Window, documents: Documents
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return _cell_ranges(window.text, documents)


def _trim_texts(
    begin: NDArray[np.int64],
    lengths: NDArray[np.int64],
    documents: Documents,
    wanted: tuple[int, int],
    starts: NDArray[np.integer],
    form: DocumentForm,
) -> int:
    """Cuts the first and the last text down to what is wanted, in place.

    A book may span hundreds of sequences: without this, each of them would copy all of it.

    Returns:
        Tokens dropped from the front of the first text.
    """
    places = [_text_place(documents, index, starts, lengths, form) for index in (0, -1)]
    after = max(0, min(int(lengths[-1]), places[1] + int(lengths[-1]) - wanted[1]))
    lengths[-1] -= after
    before = max(0, min(int(lengths[0]), wanted[0] - places[0]))
    begin[0] += before
    lengths[0] -= before
    return before


def _text_place(
    documents: Documents,
    index: int,
    starts: NDArray[np.integer],
    lengths: NDArray[np.int64],
    form: DocumentForm,
) -> int:
    """Where the text of the first (0) or last (-1) document begins in the window."""
    if documents.image_first[index]:  # text and [EOS] are the end
        return int(starts[1:][index]) - 1 - int(lengths[index])
    return int(starts[:-1][index]) + int(form.bos)


def _images(
    window: Window, documents: Documents, form: DocumentForm
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Raw image words and (n,) how many each document has."""
    begin, lengths = _cell_ranges(window.image, documents)
    words = gather(window.image, documents.batches, begin, lengths)
    if window.num_codes is None:
        return words, lengths
    codes = words[words >= form.vocabulary.num_places]
    return codes, window.num_codes[documents.records].astype(np.int64)


def _interleave(
    documents: Documents,
    texts: NDArray[Any],
    text_lengths: NDArray[np.int64],
    images: NDArray[Any],
    image_lengths: NDArray[np.int64],
    form: DocumentForm,
) -> NDArray[Any]:
    specials = form.special_cells()
    flat = [word for cell in specials for word in cell]
    lengths = np.concatenate([[len(cell) for cell in specials], text_lengths, image_lengths])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths * form.dtype.itemsize, out=offsets[1:])
    pool = np.empty(len(flat) + len(texts) + len(images), form.dtype)
    pool[: len(flat)] = flat
    pool[len(flat) : len(flat) + len(texts)] = texts
    offset = form.dtype.type(form.vocabulary.image_offset)
    raw = images.astype(form.dtype, copy=False)
    np.add(raw, offset, out=pool[len(flat) + len(texts) :])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(pool)]
    cells = pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers, null_count=0)
    return cell_bytes(cells.take(pa.array(_cell_order(documents).ravel())), form.dtype)


def _cell_order(documents: Documents) -> NDArray[np.int32]:
    """(n, 5) the pool cells of each document.

    image first [BOS][IMG], image, [/IMG], text, [EOS]; text first [BOS], text, [IMG], image,
    [/IMG][EOS]; text alone [BOS], text, nothing, an image of no words, [EOS].
    """
    num = len(documents.records)
    order = _SPECIAL_ORDER[documents.has_image.astype(np.int64) + documents.image_first]
    texts = np.arange(_NUM_SPECIAL_CELLS, _NUM_SPECIAL_CELLS + num)
    swap = documents.image_first * num
    order[:, 1] = texts + swap
    order[:, 3] = texts + (num - swap)
    return order
