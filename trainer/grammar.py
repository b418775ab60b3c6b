"""Which tokens may come next, so that whatever a model writes is a sentence that can be read back.

Inside an image: place words strictly forward, each followed by a code word, no code beyond the
grid, at least one code. Outside: text ids and the special tokens that are asked for. Some token is
always allowed, and an image ends after 2 N words at the latest. Costs a (B, V) mask a step.

B rows, V ids in the vocabulary, N places, K codes.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class GrammarState:
    """Where each of B rows stands."""

    in_image: Tensor
    """(B,) bool: between [IMG] and [/IMG]."""
    cursor: Tensor
    """(B,) int64: the patch that the next code word describes."""
    after_place: Tensor
    """(B,) bool: a place word waits for its code."""
    has_code: Tensor
    """(B,) bool: the image has a code already."""


class Grammar:
    """The rules of one vocabulary."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        places: bool,
        specials: Collection[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        """Rules for models trained on `vocabulary`.

        Args:
            vocabulary: of the checkpoint.
            places: whether image sentences hold place words.
            specials: allowed outside images, of [EOS] and [IMG].
            device: where states and masks live.
        """
        if unknown := set(specials) - {vocabulary.eos, vocabulary.image_start}:
            raise ValueError(f"only [EOS] and [IMG] may be allowed outside images, got {unknown}")
        if vocabulary.image_start in specials and not vocabulary.num_places:
            raise ValueError("this vocabulary has no images")
        self._vocabulary, self._places, self._device = vocabulary, places, torch.device(device)
        self._outside = torch.zeros(vocabulary.size, dtype=torch.bool, device=device)
        self._outside[: vocabulary.num_text_ids] = True
        self._outside[list(specials)] = True

    def start(self, num_rows: int, *, in_image: bool) -> GrammarState:
        """Rows that stand just behind [IMG], or outside any image."""
        false = torch.zeros(num_rows, dtype=torch.bool, device=self._device)
        cursor = torch.zeros(num_rows, dtype=torch.int64, device=self._device)
        return GrammarState(torch.full_like(false, in_image), cursor, false, false)

    def allowed(self, state: GrammarState) -> Tensor:
        """(B, V) bool; True at least once a row."""
        vocabulary = self._vocabulary
        inside = torch.zeros(
            (len(state.cursor), vocabulary.size), dtype=torch.bool, device=self._device
        )
        inside[:, vocabulary.code_offset :] = (state.cursor < vocabulary.num_places)[:, None]
        inside[:, vocabulary.image_end] = state.has_code & ~state.after_place
        if self._places:
            ahead = torch.arange(vocabulary.num_places, device=self._device) > state.cursor[:, None]
            places = slice(vocabulary.image_offset, vocabulary.code_offset)
            inside[:, places] = ahead & ~state.after_place[:, None]
        return torch.where(state.in_image[:, None], inside, self._outside)

    def advance(self, state: GrammarState, tokens: Tensor) -> GrammarState:
        """The state behind `tokens` (B,), which were allowed."""
        vocabulary = self._vocabulary
        opens = tokens == vocabulary.image_start
        is_code = tokens >= vocabulary.code_offset
        is_place = (tokens >= vocabulary.image_offset) & ~is_code
        cursor = torch.where(is_place, tokens - vocabulary.image_offset, state.cursor + is_code)
        return GrammarState(
            in_image=(state.in_image | opens) & (tokens != vocabulary.image_end),
            cursor=torch.where(opens, 0, cursor),
            after_place=is_place,
            has_code=(state.has_code | is_code) & ~opens,
        )
