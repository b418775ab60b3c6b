"""The tokenizer's head in one module: features to codes, codes back to features, and to pictures.

The encoder stays outside: it is frozen, and its features can be cached. Codes are made from kept
rows alone; the dense form exists for the selector's gradient and for the test that both agree.

B images, N patches an image, R kept rows (padded), T kept patches, E encoder width, D head width,
c code dimension, S pixels a side.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.errors import ArtifactError
from tokenizer.artifact import Artifact, local_folder, read_artifact, read_config
from tokenizer.codebook import Codebook
from tokenizer.config import HeadConfig
from tokenizer.decoder import Decoder
from tokenizer.encoder import Encoder
from tokenizer.merger import Merger, Rows
from tokenizer.pixel_decoder import PixelDecoder
from tokenizer.selector import Selector


class TokenizerModel(nn.Module):
    """Selector, merger, code projection, codebook, and the decoders of features and pixels."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, config: HeadConfig, *, encoder_width: int, grid: int, image_size: int
    ) -> None:
        super().__init__()
        width = config.width or encoder_width
        self.config = config
        self.grid = grid
        self.register_buffer("mean", torch.zeros(encoder_width))
        self.register_buffer("deviation", torch.ones(encoder_width))
        self.selector = Selector(encoder_width)
        self.in_proj = nn.Identity() if width == encoder_width else nn.Linear(encoder_width, width)
        self.merger = Merger(width, grid=grid, config=config)
        self.code_proj = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_dim)
        )
        self.codebook = Codebook(
            codebook_size=config.codebook_size,
            code_dim=config.code_dim,
            rule=config.code_rule,
            levels=config.fsq_levels,
        )
        self.decoder = (
            Decoder(width, out_width=encoder_width, grid=grid, config=config)
            if config.decoder_blocks
            else None
        )
        self.pixels: PixelDecoder | None = None
        if config.pixel_width:
            # Its start is drawn beside all else, which is then the same with and without it.
            with torch.random.fork_rng(devices=[]):
                self.pixels = PixelDecoder(
                    encoder_width, grid=grid, image_size=image_size, width=config.pixel_width
                )

    @property
    def num_patches(self) -> int:
        """N."""
        return self.grid * self.grid

    def standardize(self, features: Tensor) -> Tensor:
        """(B, N, E) encoder features, less the stored mean, over the stored deviation."""
        return (features - self.mean) / self.deviation

    def restore(self, features: Tensor) -> Tensor:
        """The inverse of `standardize`."""
        return features * self.deviation + self.mean

    def keep_logits(self, features: Tensor) -> Tensor:
        """(B, N, E) standardised features to (B, N) float32 keep logits."""
        logits: Tensor = self.selector(features)
        return logits

    def compress(self, features: Tensor, rows: Rows) -> Tensor:
        """(B, N, E) standardised features to (B, R, c) vectors of the kept rows, float32.

        Unit vectors, but for `fsq`, whose codebook bounds them.
        """
        return self._project(self.merger(self.in_proj(features), rows))

    def compress_dense(
        self, features: Tensor, keep_mask: Tensor, *, gate: Tensor | None = None
    ) -> Tensor:
        """The same for all N rows: (B, N, c). `gate` as in `Merger.forward_dense`."""
        merged = self.merger.forward_dense(self.in_proj(features), keep_mask, gate=gate)
        return self._project(merged)

    def reconstruct(
        self, vectors: Tensor, *, places: Tensor, valid: Tensor, gate: Tensor | None = None
    ) -> Tensor:
        """(B, R, c) code vectors to (B, N, E) standardised features. See `Decoder.forward`.

        Raises:
            ArtifactError: there is no decoder.
        """
        if self.decoder is None:
            raise ArtifactError(
                "this tokenizer has no decoder (decoder_blocks is 0): it writes words, and nothing "
                "can be rebuilt from them"
            )
        rebuilt: Tensor = self.decoder(vectors, places=places, valid=valid, gate=gate)
        return rebuilt.float()

    def rebuild(self, keep_mask: Tensor, vectors: Tensor) -> Tensor:
        """(B, N) bool mask and the (T, c) vectors of its kept patches to (B, N, E) features.

        Raises:
            ArtifactError: there is no decoder.
        """
        rows = Rows.tight(keep_mask)
        padded = vectors.new_zeros(*rows.kept.shape, vectors.shape[-1])
        padded[rows.kept_valid] = vectors
        return self.reconstruct(padded, places=rows.kept, valid=rows.kept_valid)

    def _project(self, merged: Tensor) -> Tensor:
        projected: Tensor = self.code_proj(merged).float()
        if self.config.code_rule == "fsq":  # its bound takes any length
            return projected
        return functional.normalize(projected, dim=-1)


def weight_shapes(
    config: HeadConfig, *, encoder_width: int, grid: int, image_size: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of such a model, without allocating it."""
    with torch.device("meta"):
        model = TokenizerModel(
            config, encoder_width=encoder_width, grid=grid, image_size=image_size
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def model_arrays(model: TokenizerModel) -> dict[str, NDArray[Any]]:
    """The weights as float32 arrays, for the artifact."""
    return {
        name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()
    }


def load_model(url: str, *, device: str = "cpu") -> tuple[Artifact, Encoder, TokenizerModel]:
    """An artifact with its encoder and its head, checked, in evaluation mode.

    Raises:
        ArtifactError: anything is missing, altered, misshapen or of another format.
    """
    with local_folder(url) as folder:
        artifact, model = _read(folder, url=url)
        config = artifact.config
        encoder = Encoder.load(
            config.encoder,
            base=folder,
            expected=config.encoder_spec.digest,
            preprocess=config.preprocess,
        )
    return artifact, encoder.to(device), model.to(device).eval().requires_grad_(False)


def load_head(url: str) -> tuple[Artifact, TokenizerModel]:
    """An artifact and its head alone, trainable: the start of another training.

    Raises:
        ArtifactError: anything but the encoder is missing, altered, misshapen or of another format.
    """
    with local_folder(url) as folder:
        return _read(folder, url=url)


def _read(folder: Path, *, url: str) -> tuple[Artifact, TokenizerModel]:
    config = read_config(folder, url=url)
    sizes = {
        "encoder_width": config.encoder_spec.width,
        "grid": config.encoder_spec.grid,
        "image_size": config.preprocess.image_size,
    }
    artifact = read_artifact(folder, url=url, shapes=weight_shapes(config.head, **sizes))
    model = TokenizerModel(config.head, **sizes)
    model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in artifact.tensors.items()}
    )
    return artifact, model
