"""Small networks over a CLIP embedding, read from safetensors by the names and shapes of tensors.

What a file holds does not say how it is to be run: whether something lies between two layers, or
which of two outputs is meant. So only what is certain is read, and everything else is refused with
what was found:

- one linear layer, under any name (LAION's first aesthetic predictor);
- an MLP of numbered layers. Gaps between the numbers show what had no weights: none means nothing,
  two (`layers.0`, `layers.3`) an activation and a dropout. One can be either, and which activation
  it is no gap tells: LAION's improved aesthetic predictor and its H-14 NSFW detector are known by
  all of their sizes, others need `activation`;
- `norm.mean`, `norm.variance` and `linear_1`, `linear_2`, ...: LAION's autokeras NSFW detector as
  it was brought to torch, ReLU in between and a sigmoid at its end.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.declaration import HeadSettings
from schemas.errors import SourceError

if TYPE_CHECKING:
    import torch

ROWS_PER_BATCH = 64
"""Rows a matrix product, the last ones padded: what a row gives does not depend on how many there
are."""

_EXPECTED = (
    "Expected is one linear layer (`weight`, `bias`), an MLP of numbered layers "
    "(`layers.0.weight`, `layers.2.weight`, ...), or `norm.mean`, `norm.variance` and "
    "`linear_1.weight`, `linear_2.weight`, ..., with one output or two"
)
_IMPROVED_AESTHETIC = ((0, 2, 4, 6, 7), (1024, 128, 64, 16, 1))
_H14_NSFW = ((0, 3, 6, 9, 12, 15, 16), (1024, 2048, 1024, 256, 128, 16, 1))
_LAION = {_IMPROVED_AESTHETIC: "none", _H14_NSFW: "relu"}
"""(numbers, outputs) of its layers -> the activation in the gaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A linear layer and what follows it."""

    weight: "torch.Tensor"
    """(out, in) float32."""
    bias: "torch.Tensor | None"
    """(out,) float32."""
    activation: str = "none"
    """`none`, `relu`, `gelu` or `sigmoid`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadNetwork:
    """Layers over an embedding of D features."""

    layers: tuple[Layer, ...]
    norm: "tuple[torch.Tensor, torch.Tensor] | None" = None
    """(D,) mean that is subtracted from the embedding, and (D,) deviation that it is divided by."""
    positive: int | None = None
    """Which of two outputs is the score, after a softmax; None for one output."""

    @property
    def width(self) -> int:
        """D."""
        return int(self.layers[0].weight.shape[1])

    def scores(self, embeddings: NDArray[np.float16]) -> NDArray[np.float32]:
        """(N,) scores of (N, D) embeddings. Runs on the CPU: a row is about a million products."""
        import torch

        num_batches = -(-len(embeddings) // ROWS_PER_BATCH)
        padded = np.zeros((num_batches, ROWS_PER_BATCH, self.width), np.float32)
        padded.reshape(-1, self.width)[: len(embeddings)] = embeddings
        with torch.inference_mode():
            batches = [self._run(batch) for batch in torch.from_numpy(padded)]
        found = np.concatenate([np.zeros(0, np.float32), *(batch.numpy() for batch in batches)])
        scores: NDArray[np.float32] = found[: len(embeddings)]
        return scores

    def _run(self, rows: "torch.Tensor") -> "torch.Tensor":
        """(B,) scores of (B, D) rows."""
        import torch

        if self.norm is not None:
            mean, deviation = self.norm
            rows = (rows - mean) / deviation
        for layer in self.layers:
            rows = torch.nn.functional.linear(rows, layer.weight, layer.bias)
            rows = _activate(rows, layer.activation)
        return rows[:, 0] if self.positive is None else rows.softmax(dim=1)[:, self.positive]


def _activate(rows: "torch.Tensor", activation: str) -> "torch.Tensor":
    import torch

    if activation == "relu":
        return rows.relu()
    if activation == "gelu":
        return torch.nn.functional.gelu(rows)
    return rows.sigmoid() if activation == "sigmoid" else rows


def read_head(data: bytes, settings: HeadSettings, *, place: str) -> HeadNetwork:
    """The network that a safetensors file holds.

    Args:
        data: the file.
        settings: what the file does not tell.
        place: how the file is called in messages.

    Raises:
        SourceError: the file is damaged, or holds something else; the message says what was found
            and what is expected.
    """
    import safetensors
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SourceError(
            f"{place} is no safetensors file ({error}). Convert it, for example with "
            "safetensors.torch.save_file(state_dict, path)"
        ) from error
    return _Reader(
        {name: tensor.float() for name, tensor in tensors.items()}, settings, place
    ).read()


class _Reader:
    """One file's tensors on their way to a network."""

    def __init__(
        self, tensors: Mapping[str, "torch.Tensor"], settings: HeadSettings, place: str
    ) -> None:
        self._tensors = tensors
        self._settings = settings
        self._place = place

    def read(self) -> HeadNetwork:
        stems = [name[: -len("weight")] for name in self._tensors if name.endswith("weight")]
        norm = {"norm.mean", "norm.variance"} & set(self._tensors)
        known = {f"{stem}{kind}" for stem in stems for kind in ("weight", "bias")} | norm
        if not stems or not set(self._tensors) <= known or len(norm) == 1:
            raise self._unclear("these are no layers that go together")
        if len(norm) == 2:
            return self._autokeras(stems)
        if len(stems) == 1:
            return self._network([self._layer(stems[0])])
        return self._numbered(stems)

    def _autokeras(self, stems: Sequence[str]) -> HeadNetwork:
        names = [f"linear_{number}." for number in range(1, len(stems) + 1)]
        if set(names) != set(stems):
            raise self._unclear("beside `norm` only `linear_1`, `linear_2`, ... are known")
        between = self._settings.activation or "relu"
        layers = [self._layer(name, between) for name in names[:-1]]
        network = self._network([*layers, self._layer(names[-1], "sigmoid")])
        mean, variance = self._tensors["norm.mean"].flatten(), self._tensors["norm.variance"]
        if not len(mean) == variance.numel() == network.width:
            raise self._unclear(
                f"`norm` and `linear_1` do not fit: it takes {network.width} features"
            )
        return HeadNetwork(
            layers=network.layers,
            norm=(mean, variance.flatten().sqrt()),
            positive=network.positive,
        )

    def _numbered(self, stems: Sequence[str]) -> HeadNetwork:
        matches = [re.fullmatch(r"(.*?)(\d+)\.", stem) for stem in stems]
        places = sorted((int(match[2]), match[1]) for match in matches if match is not None)
        if len(places) != len(stems) or len({prefix for _, prefix in places}) != 1:
            raise self._unclear("the order of its layers is not in their names")
        numbers = tuple(number for number, _ in places)
        names = [f"{prefix}{number}." for number, prefix in places]
        outputs = tuple(len(self._layer(name).weight) for name in names)
        has_gap = [after - before > 1 for before, after in pairwise(numbers)]
        between = self._settings.activation or _LAION.get((numbers, outputs))
        if between is None and any(has_gap):
            raise self._unclear(
                "what lies between its layers is not in the file: say `activation: relu` (or gelu, "
                "none) beside `weights`"
            )
        follows = [between or "none" if gap else "none" for gap in has_gap]
        return self._network([*map(self._layer, names, [*follows, "none"])])

    def _layer(self, stem: str, activation: str = "none") -> Layer:
        weight, bias = self._tensors[f"{stem}weight"], self._tensors.get(f"{stem}bias")
        if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise self._unclear(f"`{stem}weight` is no linear layer's")
        return Layer(weight=weight, bias=bias, activation=activation)

    def _network(self, layers: Sequence[Layer]) -> HeadNetwork:
        for before, after in pairwise(layers):
            if len(before.weight) != after.weight.shape[1]:
                raise self._unclear(
                    f"a layer with {len(before.weight)} outputs is followed by one that takes "
                    f"{after.weight.shape[1]}"
                )
        num_outputs, positive = len(layers[-1].weight), self._settings.positive
        if num_outputs > 2:
            raise self._unclear(f"it has {num_outputs} outputs: which of them is the score?")
        if num_outputs == 2 and positive is None:
            raise self._unclear(
                "it has two outputs, and which is the score is not in the file: say `positive: 0` "
                "or `positive: 1` beside `weights`"
            )
        if num_outputs == 1 and positive is not None:
            raise self._unclear("it has one output, and `positive` chooses between two")
        return HeadNetwork(layers=tuple(layers), positive=positive)

    def _unclear(self, why: str) -> SourceError:
        found = ", ".join(
            f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(self._tensors.items())
        )
        return SourceError(
            f"{self._place} cannot be read as a head: {why}. Found: {found or 'no tensor'}. "
            f"{_EXPECTED}"
        )
