"""Captions to text ids, by a Hugging Face `tokenizers` definition (tokenizer.json).

Ids are the definition's own, without special tokens: a shard stores raw ids and the joint
vocabulary is applied when reading. Encoding runs in Rust on a whole batch, on as many threads as
TOKENIZERS_PARALLELISM allows; where that is not set it is set to false, since a worker process
has one core and the library warns when a process that used its threads forks.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import ArtifactError
from schemas.fingerprint import fingerprint
from schemas.sentence import Ragged


class JsonTextTokenizer:
    """A loaded tokenizer.json: `schemas.protocols.TextTokenizer`."""

    def __init__(self, definition: dict[str, Any], *, url: str) -> None:
        """Builds the tokenizer; use `load`.

        Raises:
            ArtifactError: the definition does not load.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        self._fingerprint = definition_fingerprint(definition)
        try:
            tokenizer = Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))
        except Exception as error:  # the Rust binding raises bare Exception
            raise ArtifactError(
                f"{url}: this is no tokenizer definition that `tokenizers` loads ({error}); "
                "give a tokenizer.json"
            ) from error
        # Truncation and padding in the file are a model's business: ids must be the whole caption.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        # Added tokens may leave holes: the largest id counts, not the number of tokens.
        self._vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    @classmethod
    def load(cls, url: str) -> "JsonTextTokenizer":
        """Reads a tokenizer.json from a path or any fsspec URL.

        Raises:
            ArtifactError: it is missing, not JSON, or does not load.
        """
        return cls(_read_definition(url), url=url)

    @property
    def fingerprint(self) -> str:
        """Digest of the definition's canonical content."""
        return self._fingerprint

    @property
    def vocab_size(self) -> int:
        """Ids are 0..vocab_size-1."""
        return self._vocab_size

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Text ids without special tokens: uint16, or uint32 above 65,536 ids."""
        dtype = np.dtype(np.uint16 if self._vocab_size <= 1 << 16 else np.uint32)
        rows = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [row.ids for row in rows]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(row) for row in ids], out=offsets[1:])
        values: NDArray[np.integer] = np.fromiter(
            (id_ for row in ids for id_ in row), dtype, count=int(offsets[-1])
        )
        return Ragged(values, offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are written out."""
        text: str = self._tokenizer.decode([int(id_) for id_ in ids], skip_special_tokens=False)
        return text


def read_fingerprint(url: str) -> str:
    """The fingerprint of a tokenizer.json, without building the tokenizer.

    Raises:
        ArtifactError: it is missing or not JSON.
    """
    return definition_fingerprint(_read_definition(url))


def definition_fingerprint(definition: dict[str, Any]) -> str:
    """Digest of a definition, whatever its spacing and key order in the file."""
    return fingerprint({"format": 1, "definition": definition})


def _read_definition(url: str) -> dict[str, Any]:
    try:
        with fsspec.open(url, "rb") as file:
            value = json.loads(file.read())
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ArtifactError(
            f"{url}: no text tokenizer can be read there ({error}); give the path of a "
            "tokenizer.json"
        ) from error
    except ValueError as error:
        raise ArtifactError(
            f"{url}: the text tokenizer is not JSON ({error}); give a tokenizer.json"
        ) from error
    if not isinstance(value, dict) or "model" not in value:
        raise ArtifactError(
            f"{url}: JSON without a `model` is no tokenizer definition; give a tokenizer.json"
        )
    return value
