"""Writing with a trained model: captions for images, images for captions, scores of texts.

One forward pass a token, with a key-value cache; rows of a batch are padded on the left, and each
draws from its own generator, so a row's result does not depend on its neighbours (but for
rounding). The grammar (grammar.py) is enforced: what comes out can be read.

B rows, V ids in the vocabulary, P tokens of the longest prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import CheckpointError, FingerprintError
from schemas.sentence import word_dtype
from schemas.vocabulary import Vocabulary
from trainer.grammar import Grammar
from trainer.loss import IGNORED, linear_cross_entropy
from trainer.model import LanguageModel


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next token is chosen from the logits."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Only the likeliest so many; 0 means all."""
    top_p: float = 1.0
    """Only the likeliest that hold this much probability together."""
    seed: int = 0
    """Row i of a call draws from the seed (seed, i)."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0:
            raise ValueError(
                f"temperature {self.temperature} and top_k {self.top_k} must not be negative"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


GREEDY = SamplingConfig(temperature=0.0)


def caption(
    model: LanguageModel,
    vocabulary: Vocabulary,
    image_words: NDArray[np.integer],
    *,
    max_new_tokens: int = 32,
    places: bool = True,
    bos: bool = True,
    sampling: SamplingConfig = GREEDY,
) -> list[int]:
    """Text ids that describe one image; arguments as for `caption_batch`."""
    return caption_batch(
        model,
        vocabulary,
        [image_words],
        max_new_tokens=max_new_tokens,
        places=places,
        bos=bos,
        sampling=sampling,
    )[0]


def caption_batch(
    model: LanguageModel,
    vocabulary: Vocabulary,
    images: Sequence[NDArray[np.integer]],
    *,
    max_new_tokens: int = 32,
    places: bool = True,
    bos: bool = True,
    sampling: SamplingConfig = GREEDY,
    batch_size: int = 128,
) -> list[list[int]]:
    """Text ids that describe each image, without special tokens.

    Args:
        model: trained on image-first documents.
        vocabulary: of the checkpoint.
        images: raw image sentences (schemas/sentence.py).
        max_new_tokens: captions that reach it are cut off.
        places: whether the model was trained with place words; they are left out of the images if
            not.
        bos: whether its documents began with [BOS].
        sampling: greedy unless told otherwise.
        batch_size: images computed together, those of similar length.

    Raises:
        FingerprintError: an image holds words that the vocabulary does not have.
    """
    prompts = [
        [*_bos(vocabulary, bos), *_image(vocabulary, words, places=places)] for words in images
    ]
    grammar = Grammar(
        vocabulary, places=places, specials=[vocabulary.eos], device=model.output_weight.device
    )
    captions: list[list[int]] = [[] for _ in prompts]
    for rows in _by_length(prompts, batch_size):
        written = generate(
            model,
            [prompts[row] for row in rows],
            grammar=grammar,
            in_image=False,
            stop=vocabulary.eos,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seeds=rows,
        )
        for row, ids in zip(rows, written, strict=True):
            captions[row] = ids
    return captions


def write_image(
    model: LanguageModel,
    vocabulary: Vocabulary,
    text_ids: Sequence[int],
    *,
    image_first: float,
    places: bool = True,
    bos: bool = True,
    sampling: SamplingConfig | None = None,
    guidance: float = 0.0,
) -> NDArray[np.integer]:
    """The raw image sentence of a picture of the text, with at least one code.

    Args:
        model: trained on text-first documents.
        vocabulary: of the checkpoint.
        text_ids: the caption.
        image_first: share of image-first documents that the model was trained with.
        places: whether it was trained with place words.
        bos: whether its documents began with [BOS].
        sampling: None: temperature 1.
        guidance: weight of classifier-free guidance (arXiv 2207.12598): logits are moved on by this
            times their difference from those without the text. 0 does without.

    Raises:
        CheckpointError: the model cannot write images, or guidance is asked of a model that was
            never trained on images without a text before them.
    """
    _check_can_write(vocabulary, image_first=image_first, guidance=guidance)
    if text_ids and not 0 <= min(text_ids) <= max(text_ids) < vocabulary.num_text_ids:
        raise FingerprintError(
            f"a text id is beyond the {vocabulary.num_text_ids} of this checkpoint: encode the "
            "text with the text tokenizer that it was trained with"
        )
    start = _bos(vocabulary, bos)
    words = generate(
        model,
        [[*start, *text_ids, vocabulary.image_start]],
        grammar=Grammar(vocabulary, places=places, device=model.output_weight.device),
        in_image=True,
        stop=vocabulary.image_end,
        max_new_tokens=2 * vocabulary.num_places + 1,
        sampling=sampling or SamplingConfig(),
        without=[[*start, vocabulary.image_start]] if guidance else None,
        guidance=guidance,
    )[0]
    dtype = word_dtype(vocabulary.num_places, vocabulary.codebook_size)
    return (np.array(words, np.int64) - vocabulary.image_offset).astype(dtype)


def _check_can_write(vocabulary: Vocabulary, *, image_first: float, guidance: float) -> None:
    if not vocabulary.num_places or not vocabulary.codebook_size:
        raise CheckpointError("this model was trained without images: it can write none")
    if image_first >= 1:
        raise CheckpointError(
            "this model was trained with image_first 1 and has never seen an image after a text: "
            "train one with image_first below 1 to write images"
        )
    if guidance and image_first <= 0:
        raise CheckpointError(
            "guidance needs images without a text before them, and this model was trained with "
            "image_first 0: sample with guidance 0, or train one with image_first above 0"
        )


def score_texts(
    model: LanguageModel,
    vocabulary: Vocabulary,
    image_words: NDArray[np.integer],
    texts: Sequence[Sequence[int]],
    *,
    places: bool = True,
    bos: bool = True,
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """log p(text, [EOS] | image) of candidate texts for one image, (texts,) in nats."""
    return score_pairs(
        model,
        vocabulary,
        [image_words] * len(texts),
        texts,
        places=places,
        bos=bos,
        batch_size=batch_size,
    )


@torch.inference_mode()
def score_pairs(
    model: LanguageModel,
    vocabulary: Vocabulary,
    images: Sequence[NDArray[np.integer]],
    texts: Sequence[Sequence[int]],
    *,
    places: bool = True,
    bos: bool = True,
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """log p(text, [EOS] | image) of pairs, (pairs,) in nats; arguments as for `caption_batch`."""
    device = model.output_weight.device
    prompts = [
        [*_bos(vocabulary, bos), *_image(vocabulary, words, places=places)] for words in images
    ]
    rows = [[*p, *t, vocabulary.eos] for p, t in zip(prompts, texts, strict=True)]
    scores = np.zeros(len(rows))
    for chosen in _by_length(rows, batch_size):
        length = max(len(rows[row]) for row in chosen)
        ids = torch.full((len(chosen), length), vocabulary.pad)
        labels = torch.full((len(chosen), length), IGNORED)
        for at, row in enumerate(chosen):
            tokens = torch.tensor(rows[row])
            ids[at, : len(tokens)] = tokens
            first = len(prompts[row])
            labels[at, first - 1 : len(tokens) - 1] = tokens[first:]
        ids = ids.to(device)  # padding comes last, where causal attention does not see it
        _, nll = linear_cross_entropy(
            model.hidden_states(ids), model.output_weight, labels.to(device)
        )
        scores[chosen] = -nll.double().sum(dim=1).cpu().numpy()
    return scores


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    grammar: Grammar,
    in_image: bool,
    stop: int,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seeds: Sequence[int] | None = None,
    without: Sequence[Sequence[int]] | None = None,
    guidance: float = 0.0,
) -> list[list[int]]:
    """What follows each prompt, up to `stop` (left out) or `max_new_tokens`.

    Args:
        model: in any mode; it is not changed.
        prompts: joint ids, none empty.
        grammar: what may be written.
        in_image: whether all prompts end inside an image, just behind [IMG].
        stop: the id that ends a row.
        max_new_tokens: at most so many.
        sampling: how to choose.
        seeds: numbers of the rows, for their generators; None: 0, 1, 2, ...
        without: for guidance, each prompt without its condition.
        guidance: see `write_image`.
    """
    num_rows = len(prompts)
    device = model.output_weight.device
    decoding = _Decoding(model, [*prompts, *(without or [])], max_new_tokens)
    state = grammar.start(num_rows, in_image=in_image)
    seeds = range(num_rows) if seeds is None else seeds
    generators = [torch.Generator().manual_seed(_row_seed(sampling.seed, i)) for i in seeds]
    tokens: list[Tensor] = []
    done = torch.zeros(num_rows, dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        logits = decoding.logits.float()
        if without is not None:
            given, bare = logits.chunk(2)
            logits = given + guidance * (given - bare)
        logits = logits.masked_fill(~grammar.allowed(state), -math.inf)
        chosen = choose(logits, sampling, generators)
        tokens.append(torch.where(done, stop, chosen))
        done |= chosen == stop
        if bool(done.all()) or len(tokens) == max_new_tokens:
            break
        state = grammar.advance(state, chosen)
        decoding.append(chosen if without is None else chosen.repeat(2))
    if not tokens:
        return [[] for _ in prompts]
    written = torch.stack(tokens, dim=1).tolist()
    return [row[: row.index(stop)] if stop in row else row for row in written]


class _Decoding:
    """Prompts of unequal length and what follows them, with the logits of the next token."""

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        device = model.output_weight.device
        length = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), length), dtype=torch.int64)
        is_padding = torch.ones((len(prompts), length), dtype=torch.int32)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            is_padding[row, length - len(prompt) :] = 0
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        positions = (torch.arange(length) - (length - lengths[:, None])).clamp(min=0)
        self._model, self._next = model, lengths.to(device)
        self._document = torch.zeros((len(prompts), 1), dtype=torch.int32, device=device)
        self._cache = model.new_cache(batch_size=len(prompts), max_length=length + max_new_tokens)
        # Padding is a document of its own: no real token sees it, and its softmax is not empty.
        self.logits = self._forward(ids.to(device), is_padding.to(device), positions.to(device))
        """(B, V)."""

    def append(self, tokens: Tensor) -> None:
        """One token a row, (B,)."""
        self.logits = self._forward(tokens[:, None], self._document, self._next[:, None])
        self._next = self._next + 1

    def _forward(self, ids: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
        hidden = self._model.hidden_states(
            ids, document_ids=documents, position_ids=positions, cache=self._cache
        )
        return hidden[:, -1] @ self._model.output_weight.T  # only the last position is needed


def choose(
    logits: Tensor, sampling: SamplingConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """(B,) tokens for (B, V) float32 logits, -inf where a token is not allowed.

    One uniform number a row is looked up in the cumulative distribution of its candidates.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = (ordered / sampling.temperature).softmax(dim=-1)
    if sampling.top_k:
        probabilities[:, sampling.top_k :] = 0
    before = probabilities.cumsum(dim=-1) - probabilities  # held by likelier tokens
    probabilities[before >= sampling.top_p * probabilities.sum(-1, keepdim=True)] = 0
    cumulative = probabilities.cumsum(dim=-1)
    uniform = torch.stack([torch.rand((), generator=g) for g in generators]).to(logits.device)
    target = uniform[:, None] * cumulative[:, -1:]
    place = (cumulative <= target).sum(dim=-1, keepdim=True)
    # Rounding may put the target at the very end: the last candidate, not one without probability.
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(place, last))[:, 0]


def _row_seed(seed: int, row: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + row) % (1 << 63)


def _bos(vocabulary: Vocabulary, bos: bool) -> list[int]:
    return [vocabulary.bos] if bos else []


def _image(vocabulary: Vocabulary, words: NDArray[np.integer], *, places: bool) -> list[int]:
    """[IMG] words [/IMG] in joint ids."""
    limit = vocabulary.num_places + vocabulary.codebook_size
    raw = np.asarray(words, np.int64)
    if len(raw) and not 0 <= int(raw.min()) <= int(raw.max()) < limit:
        raise FingerprintError(
            f"image word {raw.max()} is beyond the {limit} of this checkpoint: encode the image "
            "with the tokenizer that it was trained with"
        )
    if not places:
        raw = raw[raw >= vocabulary.num_places]
    ids = (raw + vocabulary.image_offset).tolist()
    return [vocabulary.image_start, *ids, vocabulary.image_end]


def _by_length(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Numbers of rows in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), row))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
