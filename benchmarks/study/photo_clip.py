"""A small CLIP for photographs, trained from nothing on the photographs of the study.

No pretrained image tower is at hand where the study runs, and the scenes' one has never seen a
photograph. So a tower of the same size (64 pixels, 8 x 8 patches, width 128) learns from the
captions of 1,500 photographs for some minutes. That is far too little to know objects: it stands
for `features of photographs`, not for a good encoder, and what the study says of photographs is
bounded by it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.data import Photograph
from jobs.demo.clip_folder import CONFIG_FILE, MODEL, PREPROCESS, WEIGHTS_FILE, write_card
from tokenizer.preprocess import decode_image

# B photographs of a batch, M in all, S pixels a side, L words.

STORED_SIDE = 76
"""Pixels that are kept of a photograph; a crop of the encoder's side is drawn from them."""
PAD_ID, UNKNOWN_ID, FIRST_WORD_ID = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoClipConfig:
    """One training."""

    num_steps: int = 300
    batch_size: int = 96
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    warmup_steps: int = 30
    context_words: int = 20
    rarest: int = 3
    """Words that occur less often are one unknown word."""
    seed: int = 0


class Words:
    """Captions as word ids: those that are common enough, and the end."""

    def __init__(self, captions: Sequence[str], config: PhotoClipConfig) -> None:
        counts = Counter(word for text in captions for word in _split(text))
        known = sorted(word for word, count in counts.items() if count >= config.rarest)
        self._ids = {word: FIRST_WORD_ID + index for index, word in enumerate(known)}
        self._length = config.context_words

    @property
    def vocab_size(self) -> int:
        """Ids are below it; the last ends a caption, because the text is read there."""
        return FIRST_WORD_ID + len(self._ids) + 1

    def __call__(self, caption: str) -> list[int]:
        """L ids."""
        words = _split(caption)[: self._length - 1]
        ids = [self._ids.get(word, UNKNOWN_ID) for word in words] + [self.vocab_size - 1]
        return ids + [PAD_ID] * (self._length - len(ids))


def _split(caption: str) -> list[str]:
    return re.findall(r"[a-z]+", caption.lower())


def train_photo_clip(
    folder: Path,
    train: Sequence[Photograph],
    held_out: Sequence[Photograph],
    *,
    config: PhotoClipConfig,
    progress: Callable[[int, int, float], None],
) -> dict[str, Any]:
    """Trains the tower and writes it as an open_clip folder with a card; returns the card.

    Args:
        folder: made where it is missing; complete when its weights are there.
        train: photographs to learn from.
        held_out: what retrieval is measured on.
        config: budget and rates.
        progress: called with (step, steps in all, loss).
    """
    from open_clip.model import CLIP

    words = Words([text for item in train for text in item.captions], config)
    definition = _definition(words.vocab_size, config.context_words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = CLIP(**definition)
        loss = _train(model, train, words, config, progress)
    card = {
        "config": asdict(config),
        "num_train": len(train),
        "vocab_size": words.vocab_size,
        "last_loss": loss,
        "held_out": measure_retrieval(model.eval(), held_out, words),
    }
    _write_folder(folder, model, definition, card)
    return card


def _definition(vocab_size: int, context_words: int) -> dict[str, Any]:
    text = {
        **MODEL["text_cfg"],
        "context_length": context_words,
        "vocab_size": vocab_size,
        "pad_id": PAD_ID,
        "eos_id": vocab_size - 1,
    }
    return {**MODEL, "text_cfg": text}


def _train(
    model: Any,
    photographs: Sequence[Photograph],
    words: Words,
    config: PhotoClipConfig,
    progress: Callable[[int, int, float], None],
) -> float:
    """Symmetric contrastive loss over B photographs, each with one of its captions. The last."""
    pixels = _decode(photographs, STORED_SIDE)  # (M, S, S, 3)
    captions = torch.tensor([[words(text) for text in item.captions[:5]] for item in photographs])
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    target = torch.arange(config.batch_size)
    value = math.nan
    for step in range(config.num_steps):
        warm = min(1.0, (step + 1) / config.warmup_steps)
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
            group["lr"] = config.learning_rate * warm * cosine
        rows = torch.randperm(len(pixels), generator=generator)[: config.batch_size]
        which = torch.randint(captions.shape[1], (len(rows),), generator=generator)
        image = model.encode_image(_augment(pixels[rows], generator), normalize=True)
        text = model.encode_text(captions[rows, which], normalize=True)
        logits = model.logit_scale.exp() * image @ text.T
        loss = torch.nn.functional.cross_entropy(logits, target)
        loss = (loss + torch.nn.functional.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(50))
        value = float(loss.detach())
        progress(step + 1, config.num_steps, value)
    return value


def _augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, side, side) in -1..1: one crop for all, half of them mirrored,
    brightness of each its own."""
    side = int(PREPROCESS["size"][0])
    top, left = torch.randint(STORED_SIDE - side + 1, (2,), generator=generator).tolist()
    cut = pixels[:, top : top + side, left : left + side].permute(0, 3, 1, 2).float()
    mirrored = torch.rand(len(cut), 1, 1, 1, generator=generator) < 0.5
    cut = torch.where(mirrored, cut.flip(3), cut)
    gain = 0.8 + 0.4 * torch.rand(len(cut), 1, 1, 1, generator=generator)
    return (cut * gain).clamp(0, 255) / 127.5 - 1


def _decode(photographs: Sequence[Photograph], side: int) -> Tensor:
    """(M, side, side, 3) uint8."""
    return torch.from_numpy(
        np.stack(
            [
                decode_image(item.data, image_size=side, index=index)
                for index, item in enumerate(photographs)
            ]
        )
    )


@torch.inference_mode()
def measure_retrieval(
    model: Any, photographs: Sequence[Photograph], words: Words
) -> dict[str, float]:
    """Share of M photographs whose own first caption is among the ten nearest, and by chance."""
    side = int(PREPROCESS["size"][0])
    pixels = _decode(photographs, side).permute(0, 3, 1, 2).float() / 127.5 - 1
    captions = torch.tensor([words(item.captions[0]) for item in photographs])
    image = torch.cat(
        [model.encode_image(part, normalize=True) for part in torch.split(pixels, 128)]
    )
    text = torch.cat(
        [model.encode_text(part, normalize=True) for part in torch.split(captions, 128)]
    )
    scores = image @ text.T  # (M, M)
    better = (scores > scores.diagonal()[:, None]).sum(dim=1)
    return {
        "recall_at_10": float((better < 10).double().mean()),
        "chance": 10 / len(photographs),
    }


def _write_folder(
    folder: Path, model: Any, definition: dict[str, Any], card: dict[str, Any]
) -> None:
    """The open_clip layout that `local-dir:` reads; weights last, so that they mean complete."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": definition, "preprocess_cfg": dict(PREPROCESS)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    write_card(folder, card)
    weights = {
        name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()
    }
    temporary = folder / f".tmp-{WEIGHTS_FILE}"
    temporary.write_bytes(save(weights))
    temporary.replace(folder / WEIGHTS_FILE)
