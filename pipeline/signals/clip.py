"""The CLIP signal: how well a caption fits its image, as the cosine of their open_clip features.

Any open_clip model: a built-in name with a pretrained tag or a checkpoint file,
`hf-hub:OWNER/NAME`, or `local-dir:PATH`, open_clip's own form of a folder. float32, and every
forward pass has the same shape (the last batch is padded), so that a score does not depend on how
many pairs came with it. That costs about three times the CPU seconds of bfloat16 (10 images/s on
two cores with ViT-B-32).
"""

import importlib.metadata
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.pair_shard import Pair
from pipeline.signals.decoding import decode_rgb
from schemas.declaration import ClipSettings
from schemas.errors import DeclarationError, SourceError
from schemas.fingerprint import digest, file_sha256
from schemas.signals import CLIP, SignalSchema

if TYPE_CHECKING:
    import torch

_FOLDER = "local-dir:"
_HUB = "hf-hub:"
_NUM_DECODE_THREADS = 4
"""Decoding and resizing release the interpreter lock; more threads only wait for the model."""


@dataclass(frozen=True, slots=True)
class ClipSignal:
    """`clip_score`, in -1..1; null where the model gives no finite number."""

    clip: ClipSettings
    root: str = ""
    """Where a relative `pretrained` file starts."""

    @property
    def schema(self) -> SignalSchema:
        return CLIP

    @property
    def reads_images(self) -> bool:
        return True

    @property
    def reads_captions(self) -> bool:
        return True

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
        return f"{_device()}-float32-{versions}-batch{self.clip.batch_size}"

    def settings(self) -> dict[str, Any]:
        """The model: the digest of its files where they are local, else what names it.

        Raises:
            DeclarationError: a built-in model without `pretrained`, which would be random weights.
            SourceError: the folder is missing, or holds no model.
        """
        if self.clip.model.startswith(_FOLDER):
            return {"model": _folder_digest(Path(self.clip.model.removeprefix(_FOLDER)))}
        if self.clip.model.startswith(_HUB):
            return {"model": self.clip.model}
        file = self._checkpoint()
        weights = self._pretrained() if file is None else file_sha256(file)
        return {"model": self.clip.model, "pretrained": weights}

    def measure(self, pairs: Sequence[Pair]) -> pa.Table:
        """One row a pair, in the given order, of `CLIP.arrow()`.

        Raises:
            CorruptShardError: a stored image cannot be decoded.
            DeclarationError: there is no such model or pretrained tag.
            SourceError: the weights cannot be loaded.
        """
        scorer = self._load()
        size = self.clip.batch_size
        scores: list[float | None] = []
        for start in range(0, len(pairs), size):
            scores += scorer.scores(pairs[start : start + size], batch_size=size)
        return pa.table({"key": [pair.key for pair in pairs], "clip_score": scores}, CLIP.arrow())

    def _load(self) -> "_Scorer":
        if self.clip.model.startswith((_FOLDER, _HUB)):
            if self.clip.model.startswith(_FOLDER):
                _check_folder(Path(self.clip.model.removeprefix(_FOLDER)))
            return _load_scorer(self.clip.model, None)
        file = self._checkpoint()
        return _load_scorer(self.clip.model, self._pretrained() if file is None else str(file))

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
class _Scorer:
    """A loaded model. B images a batch, D features."""

    model: "torch.nn.Module"
    preprocess: Callable[[Any], "torch.Tensor"]
    tokenize: Callable[[list[str]], "torch.Tensor"]
    device: str

    def scores(self, pairs: Sequence[Pair], *, batch_size: int) -> list[float | None]:
        """The cosines of at most `batch_size` pairs."""
        import torch

        with ThreadPoolExecutor(_NUM_DECODE_THREADS) as threads:
            decoded = list(threads.map(lambda pair: self.preprocess(decode_rgb(pair)), pairs))
        images = _pad(torch.stack(decoded), batch_size)  # (B, 3, side, side)
        texts = _pad(self.tokenize([pair.caption for pair in pairs]), batch_size)  # (B, context)
        with torch.inference_mode():
            image_features = self.model.encode_image(images.to(self.device))  # type: ignore[operator]
            text_features = self.model.encode_text(texts.to(self.device))  # type: ignore[operator]
            cosines = torch.nn.functional.cosine_similarity(
                image_features.float(), text_features.float(), dim=-1
            )  # (B,)
        # A rule reads NaN as greater than every number; a score that is none must not pass.
        found = cosines[: len(pairs)].cpu()
        return [float(score) if score.isfinite() else None for score in found]


def _pad(batch: "torch.Tensor", batch_size: int) -> "torch.Tensor":
    """The batch with zero rows at its end, `batch_size` rows in all."""
    import torch

    padding = batch.new_zeros((batch_size - len(batch), *batch.shape[1:]))
    return torch.cat([batch, padding])


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)
def _load_scorer(model: str, pretrained: str | None) -> _Scorer:
    """Loads a model, once a process."""
    import open_clip
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
    return _Scorer(network.eval().requires_grad_(False), preprocess, tokenize, device)


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
