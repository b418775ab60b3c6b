"""Pictures of what a tokenizer does: the original, its kept patches, and what its codes draw.

Drawing needs the codebook and the two decoders only, so the encoder is not loaded: the shipped
artifact opens in 0.03 s (torch takes two seconds to import) and draws 790 pictures a second on one
core. Pictures are no part of the fingerprint, so batches are of any size here.

B images, N = G x G patches an image, T kept patches, S pixels a side, c code dimension.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ArtifactError
from tokenizer.config import PreprocessConfig

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from tokenizer.model import TokenizerModel

Pixels = NDArray[np.uint8]

SHEET_SIDE = 128
"""Pixels a side of a picture on a sheet."""
_GAP = 6
_PAPER_RGB = (255, 255, 255)
_BATCH = 64
_DIMMING = 0.72
_DIM_RGB = (38, 41, 48)
_EDGE_RGBA = (255, 255, 255, 150)


class CodeDrawer:
    """Draws pictures from codes: a tokenizer's codebook and decoders, without its encoder."""

    def __init__(self, model: "TokenizerModel", preprocess: PreprocessConfig) -> None:
        """`model` must have a pixel decoder."""
        if model.pixels is None:
            raise ValueError("pixel_width is 0: there is no pixel decoder to draw with")
        self.model = model
        self.preprocess = preprocess

    @classmethod
    def load(cls, url: str, *, fingerprint: str | None = None) -> "CodeDrawer":
        """Reads and checks an artifact's head.

        Args:
            url: the artifact's folder, any fsspec URL.
            fingerprint: of the tokenizer that wrote the codes; None where `url` is what matters.

        Raises:
            ArtifactError: there is none, it is altered, another one than asked for, or cannot draw.
        """
        from tokenizer.artifact import CONFIG, local_folder, read_config
        from tokenizer.model import load_head

        with local_folder(url, names=(CONFIG,)) as folder:
            config = read_config(folder, url=url)
        if fingerprint is not None and config.fingerprint != fingerprint:
            raise ArtifactError(
                f"{url} is tokenizer {config.fingerprint[:16]} now, and the codes were written by "
                f"{fingerprint[:16]}: only that one can draw them"
            )
        if not config.head.pixel_width:
            raise ArtifactError(
                f"{url} has no pixel decoder: train one with pixel_width above 0, as the preset "
                "`tiny` has it"
            )
        _, model = load_head(url)
        return cls(model.eval().requires_grad_(False), config.preprocess)

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.model.grid

    def draw(self, keep_mask: NDArray[np.bool_], codes: NDArray[np.integer]) -> Pixels:
        """The pictures that codes stand for.

        Args:
            keep_mask: (B, N) bool, at least one True an image.
            codes: (T,) codes of the kept patches, image by image in raster order.

        Returns:
            (B, S, S, 3) uint8 RGB.
        """
        import torch

        size, device = self.preprocess.image_size, self.model.mean.device
        drawn = np.empty((len(keep_mask), size, size, 3), np.uint8)
        bounds = np.concatenate([[0], np.cumsum(keep_mask.sum(axis=1))])
        with torch.no_grad():
            for first in range(0, len(keep_mask), _BATCH):
                last = min(first + _BATCH, len(keep_mask))
                mask = torch.from_numpy(keep_mask[first:last]).to(device)
                chosen = codes[bounds[first] : bounds[last]].astype(np.int64)
                vectors = self.model.codebook.lookup(torch.from_numpy(chosen).to(device))
                rebuilt = self.model.rebuild(mask, vectors)
                assert self.model.pixels is not None
                drawn[first:last] = to_rgb(self.model.pixels(rebuilt), self.preprocess)
        return drawn


def to_rgb(pixels: "Tensor", preprocess: PreprocessConfig) -> Pixels:
    """(B, 3, S, S) in the encoder's units to (B, S, S, 3) uint8 RGB: undoes `normalize_pixels`."""
    moved = pixels.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    deviation = np.asarray(preprocess.deviation, np.float32)
    scaled = moved * deviation + np.asarray(preprocess.mean, np.float32)
    rounded: Pixels = np.rint(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)
    return rounded


def show_kept(picture: "Image.Image", keep_mask: NDArray[np.bool_], grid: int) -> "Image.Image":
    """A picture with its dropped patches dimmed and its kept ones outlined.

    Args:
        picture: RGB; the grid is laid over the whole of it.
        keep_mask: (N,) bool in raster order, True keeps.
        grid: patches a side.

    Raises:
        ValueError: the mask is not of this grid.
    """
    from PIL import Image, ImageDraw

    if keep_mask.shape != (grid * grid,):
        raise ValueError(f"keep_mask must have {grid * grid} patches, got shape {keep_mask.shape}")
    dark = Image.new("RGB", picture.size, _DIM_RGB)
    dimmed = Image.blend(picture.convert("L").convert("RGB"), dark, _DIMMING)
    columns = np.linspace(0, picture.width, grid + 1).round().astype(int)
    rows = np.linspace(0, picture.height, grid + 1).round().astype(int)
    edges = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(edges)
    for place in np.flatnonzero(keep_mask):
        row, column = divmod(int(place), grid)
        box = (int(columns[column]), int(rows[row]), int(columns[column + 1]), int(rows[row + 1]))
        dimmed.paste(picture.crop(box), box[:2])
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=_EDGE_RGBA)
    dimmed.paste(edges, (0, 0), edges)
    return dimmed


def sheet(
    originals: Pixels, keep_mask: NDArray[np.bool_], drawn: Pixels | None, *, num_columns: int = 2
) -> Pixels:
    """A sheet of strips: original, kept patches and, where there is one, what the codes draw.

    Args:
        originals: (B, S, S, 3) uint8 RGB.
        keep_mask: (B, N) bool.
        drawn: (B, S, S, 3) uint8 RGB, or None.
        num_columns: strips side by side.

    Returns:
        (H, W, 3) uint8 RGB on white.
    """
    grid = round(keep_mask.shape[1] ** 0.5)
    strips = []
    for index, original in enumerate(originals):
        picture = enlarged(original, side=SHEET_SIDE)
        parts = [picture, show_kept(picture, keep_mask[index], grid)]
        if drawn is not None:
            parts.append(enlarged(drawn[index], side=SHEET_SIDE))
        strips.append(_beside(parts, gap=2))
    rows = [
        _beside(strips[first : first + num_columns], gap=3 * _GAP)
        for first in range(0, len(strips), num_columns)
    ]
    return np.asarray(_below(rows, gap=_GAP))


def enlarged(pixels: Pixels, *, side: int) -> "Image.Image":
    """(S, S, 3) pixels as a picture of `side` pixels, or of its own size if that is larger."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    if picture.width >= side:
        return picture
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _beside(parts: "Sequence[Image.Image]", *, gap: int) -> "Image.Image":
    from PIL import Image

    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    paper = Image.new("RGB", (width, max(part.height for part in parts)), _PAPER_RGB)
    left = 0
    for part in parts:
        paper.paste(part, (left, 0))
        left += part.width + gap
    return paper


def _below(parts: "Sequence[Image.Image]", *, gap: int) -> "Image.Image":
    from PIL import Image

    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    paper = Image.new("RGB", (max(part.width for part in parts), height), _PAPER_RGB)
    top = 0
    for part in parts:
        paper.paste(part, (0, top))
        top += part.height + gap
    return paper
