"""The CLIP model behind the score, the embedding and the heads: which it is, and its two towers.

Any open_clip model: a built-in name with a pretrained tag or a checkpoint file,
`hf-hub:OWNER/NAME`, or `local-dir:PATH`, open_clip's own form of a folder. Every forward pass has
the same shape (the last batch is padded), so that what it says of a pair does not depend on how
many came with it. ViT-B-32 takes 172 ms of a core for a pair in float32, 43 ms in bfloat16 on a CPU
that has it: the weights are cast, since autocast was slower than float32.
"""

import importlib.metadata
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.declaration import ClipSettings
from schemas.errors import DeclarationError, SourceError
from schemas.fingerprint import digest, file_sha256

if TYPE_CHECKING:
    import torch

_FOLDER = "local-dir:"
_HUB = "hf-hub:"


@dataclass(frozen=True)
class ClipModel:
    """A model by its name, and its digest; loaded when it is asked for."""

    clip: ClipSettings
    root: str = ""
    """Where a relative `pretrained` file starts."""

    @property
    def numeric(self) -> str:
        """Device class, dtype, libraries and batch shape. Loads torch."""
        versions = "-".join(
            f"{name}{importlib.metadata.version(package)}"
            for name, package in (
                ("torch", "torch"),
                ("open_clip", "open_clip_torch"),
                ("pillow", "pillow"),
            )
        )
        return f"{_device()}-{self.clip.precision}-{versions}-batch{self.clip.batch_size}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The model: the digest of its files where they are local, else what names it.

        Files are read once for all groups that share this object.

        Raises:
            DeclarationError: a built-in model without `pretrained`, which would be random weights.
            SourceError: the folder is missing, or holds no model.
        """
        # float32 is what scores were before there was a choice: it must not make them stale.
        cast = {} if self.clip.precision == "float32" else {"precision": self.clip.precision}
        return {**self._weights(), **cast}

    def load(self) -> "LoadedClip":
        """The model, loaded once a process.

        Raises:
            DeclarationError: there is no such model or pretrained tag.
            SourceError: the weights cannot be loaded.
        """
        pretrained = None
        if self.clip.model.startswith(_FOLDER):
            _check_folder(self._folder())
        elif not self.clip.model.startswith(_HUB):
            file = self._checkpoint()
            pretrained = self._pretrained() if file is None else str(file)
        return _load(self.clip.model, pretrained, self.clip.precision)

    def _weights(self) -> dict[str, Any]:
        if self.clip.model.startswith(_FOLDER):
            return {"model": _folder_digest(self._folder())}
        if self.clip.model.startswith(_HUB):
            return {"model": self.clip.model}
        file = self._checkpoint()
        weights = self._pretrained() if file is None else file_sha256(file)
        return {"model": self.clip.model, "pretrained": weights}

    def _folder(self) -> Path:
        return Path(self.clip.model.removeprefix(_FOLDER))

    def _pretrained(self) -> str:
        if self.clip.pretrained is None:
            raise DeclarationError(
                f"signals.clip: model {self.clip.model!r} has no `pretrained`, so its weights "
                "would be random. Name a tag (for example laion2b_s34b_b79k) or a checkpoint file"
            )
        return self.clip.pretrained

    def _checkpoint(self) -> Path | None:
        """The file that `pretrained` names, or None where it is a tag."""
        path = Path(self.root) / self._pretrained()
        return path if path.is_file() else None


@dataclass(frozen=True)
class LoadedClip:
    """A loaded model. B images a batch, D features, S pixels a side."""

    network: "torch.nn.Module"
    geometry: Sequence[Callable[[Image.Image], Image.Image]]
    """What open_clip does to an image before it becomes numbers: resize, crop."""
    normalize: Callable[["torch.Tensor"], "torch.Tensor"]
    """(B, 3, S, S) of 0..1 to what the network takes."""
    tokenize: Callable[[list[str]], "torch.Tensor"]
    device: str
    dtype: "torch.dtype"

    @cached_property
    def width(self) -> int:
        """D, found by looking at one blank image."""
        blank = self.crop(Image.new("RGB", (64, 64)))
        return int(self.image_features([blank], batch_size=1).shape[1])

    def crop(self, picture: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture as the network sees it: (S, S, 3). Called by several threads."""
        for step in self.geometry:
            picture = step(picture)
        return np.array(picture)

    def image_features(
        self, crops: Sequence[NDArray[np.uint8]], *, batch_size: int
    ) -> "torch.Tensor":
        """(n, D) float32 features of n <= `batch_size` crops, not normalised, on the device."""
        import torch

        # As open_clip's own transform, but for a whole batch and where the network is.
        pixels = _pad(torch.from_numpy(np.stack(crops)), batch_size).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)  # (B, 3, S, S)
        with torch.inference_mode():
            features = self.network.encode_image(self.normalize(pixels).to(self.dtype))  # type: ignore[operator]
        found: torch.Tensor = features[: len(crops)].float()
        return found

    def text_features(self, captions: list[str], *, batch_size: int) -> "torch.Tensor":
        """(n, D) float32 features of n <= `batch_size` captions, not normalised, on the device."""
        import torch

        tokens = _pad(self.tokenize(captions), batch_size).to(self.device)  # (B, context)
        with torch.inference_mode():
            features = self.network.encode_text(tokens)  # type: ignore[operator]
        found: torch.Tensor = features[: len(captions)].float()
        return found


def _pad(batch: "torch.Tensor", batch_size: int) -> "torch.Tensor":
    """The batch with zero rows at its end, `batch_size` rows in all."""
    import torch

    padding = batch.new_zeros((batch_size - len(batch), *batch.shape[1:]))
    return torch.cat([batch, padding])


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)
def _load(model: str, pretrained: str | None, precision: str) -> LoadedClip:
    import open_clip
    import torch
    from safetensors import SafetensorError

    if not model.startswith((_FOLDER, _HUB)):
        _check_known(model, pretrained)
    device = _device()
    try:
        network, preprocess = open_clip.create_model_from_pretrained(
            model, pretrained=pretrained, precision="fp32", device=device
        )
        tokenize = open_clip.get_tokenizer(model)
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise SourceError(
            f"signals.clip: cannot load {model} ({pretrained or 'its own weights'}): {error}. "
            "Check that the weights are complete and, for hub names, that the hub can be reached; "
            "or name a local folder, `local-dir:PATH`"
        ) from error
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    network = network.to(dtype).eval().requires_grad_(False)
    if dtype != torch.float32:
        _put_sequence_first(network)
    *geometry, _, normalize = preprocess.transforms  # the step left out makes a tensor of an image
    return LoadedClip(network, geometry, normalize, tokenize, device, dtype)


def _put_sequence_first(network: "torch.nn.Module") -> None:
    """Lays out the text tower's activations as (sequence, batch, width).

    The other way round, attention hands a transposed view to its first product, for which torch on
    a CPU copies the bfloat16 weights once a position: 77 times. ViT-B-32's text tower then makes 20
    instead of 55 captions a second on one core. The numbers are the same but for the last bit.
    """
    import torch
    from open_clip.transformer import Transformer

    tower = getattr(network, "transformer", None) or getattr(
        getattr(network, "text", None), "transformer", None
    )
    if not isinstance(tower, Transformer):
        return
    attentions = [block.attn for block in tower.resblocks]
    if all(isinstance(attention, torch.nn.MultiheadAttention) for attention in attentions):
        tower.batch_first = False
        for attention in attentions:
            attention.batch_first = False


def _check_known(model: str, pretrained: str | None) -> None:
    import difflib

    import open_clip

    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`open_clip.list_models()` lists them"
        raise DeclarationError(f"signals.clip: open_clip has no model {model!r}; {hint}")
    if pretrained is None or Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not open_clip.get_pretrained_cfg(name, pretrained):
        raise DeclarationError(
            f"signals.clip: {model!r} has no pretrained weights {pretrained!r}, and there is no "
            f"such file; known are {', '.join(tags) or 'none'}"
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        what = "has no open_clip_config.json" if folder.is_dir() else "does not exist"
        raise SourceError(
            f"signals.clip: {folder} {what}. A folder written by open_clip holds "
            "open_clip_config.json, the weights and, if it has its own, the text tokenizer"
        )


def _folder_digest(folder: Path) -> str:
    """Digest over names and bytes of a model folder's files, but for notes and hidden files."""
    _check_folder(folder)
    files = sorted(
        (str(path.relative_to(folder)), path)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".md" and not _is_hidden(path.relative_to(folder))
    )
    return digest(*(part for name, path in files for part in (name, file_sha256(path))))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
