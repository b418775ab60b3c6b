"""The frozen image tower: any open_clip or timm model, read at one of its blocks.

Patch features of the penultimate block are the default: with class-token pooling the last block's
patch outputs get no gradient from CLIP's loss. The class token is dropped, and the tower stops at
that block. The whole CLIP is built to get at its image half (open_clip loads strictly), so
loading needs memory for the text half too, about 0.5 GB for EVA01-g-14.

B images, S pixels a side, N patches an image, G = sqrt(N), D width.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from schemas.errors import ArtifactError
from tokenizer.artifact import EncoderSpec
from tokenizer.config import EncoderConfig, PreprocessConfig
from tokenizer.weights import tensors_digest

BUILTIN, LOCAL, HUB, TIMM = "builtin:", "local-dir:", "hf-hub:", "timm:"
RANDOM = "random"
_ASSETS = Path(__file__).parent / "assets"


def encoder_folder(model: str, *, base: Path | None = None) -> Path | None:
    """The local folder an encoder name means, or None for a model that is fetched by name.

    Args:
        model: as in `EncoderConfig.model`.
        base: what relative `local-dir:` paths start from; None for the working directory.

    Raises:
        ArtifactError: the folder is missing or is not an open_clip folder with safetensors.
    """
    if model.startswith(BUILTIN):
        folder = _ASSETS / model.removeprefix(BUILTIN)
    elif model.startswith(LOCAL):
        folder = (base or Path()) / model.removeprefix(LOCAL)
    else:
        return None
    if not (folder / "open_clip_config.json").is_file():
        raise ArtifactError(
            f"encoder {model}: no open_clip_config.json in {folder}; give a folder in open_clip's "
            "layout (a relative path starts at the artifact, or where the command was started)"
        )
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"encoder {model}: no .safetensors weights in {folder}; pickled weights are not "
            "loaded, convert them first"
        )
    return folder


class Encoder(nn.Module):
    """A frozen image tower: pixels to patch features."""

    def __init__(
        self,
        tower: nn.Module,
        *,
        config: EncoderConfig,
        architecture: dict[str, Any],
        preprocess: PreprocessConfig,
    ) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.config = config
        self.preprocess = preprocess
        size = preprocess.image_size
        features = self(torch.zeros(1, 3, size, size))
        grid = round(features.shape[1] ** 0.5)
        if grid * grid != features.shape[1]:
            raise ArtifactError(
                f"encoder {config.model} gives {features.shape[1]} patches, which is no square "
                "grid; choose a square image_size"
            )
        self.spec = EncoderSpec(
            width=features.shape[2],
            grid=grid,
            architecture=architecture,
            digest=weights_digest(tower),
        )

    @classmethod
    def load(
        cls, config: EncoderConfig, *, base: Path | None = None, expected: str | None = None
    ) -> "Encoder":
        """Builds the tower and loads its weights.

        Args:
            config: which model, weights and layer.
            base: what relative `local-dir:` paths start from.
            expected: the weight digest it must have.

        Raises:
            ArtifactError: it cannot be found or loaded, or its weights are others than expected.
        """
        if config.model.startswith(TIMM):
            encoder = _load_timm(config)
        else:
            encoder = _load_open_clip(config, folder=encoder_folder(config.model, base=base))
        if expected is not None and encoder.spec.digest != expected:
            raise ArtifactError(
                f"encoder {config.model}: its weights ({encoder.spec.digest[:16]}) are not those "
                f"this tokenizer was trained on ({expected[:16]}); restore the original encoder"
            )
        return encoder

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to (B, N, D) patch features in raster order, float32."""
        found = self.tower.forward_intermediates(  # type: ignore[operator]
            pixels,
            indices=[self.config.feature_layer],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        if isinstance(found, dict):
            found = found["image_intermediates"]
        maps: Tensor = found[-1]  # (B, D, G, G)
        return maps.flatten(2).transpose(1, 2).float().contiguous()


def weights_digest(module: nn.Module) -> str:
    """The digest over a module's named weights, as loaded."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}
    return tensors_digest(arrays)


def _load_open_clip(config: EncoderConfig, *, folder: Path | None) -> Encoder:
    import open_clip
    from safetensors import SafetensorError

    name = f"{LOCAL}{folder}" if folder is not None else config.model
    chosen = config.pretrained
    if folder is None and not name.startswith(HUB) and chosen is None:
        raise ArtifactError(
            f"encoder {config.model}: `pretrained` names no weights; give one of open_clip's tags"
        )
    random = chosen == RANDOM
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = open_clip.create_model(
                name,
                pretrained=None if random else chosen,
                load_weights=not random,
                require_pretrained=not random,
                force_image_size=config.image_size,
            )
        definition = open_clip.get_model_config(name)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"encoder {config.model} (pretrained={chosen}) cannot be loaded: {error}; check the "
            "name, the network or the folder"
        ) from error
    visual = model.visual
    return Encoder(
        visual,
        config=config,
        architecture=_architecture(definition),
        preprocess=_preprocess(
            config, visual.image_size, visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"]
        ),
    )


def _architecture(definition: dict[str, Any]) -> dict[str, Any]:
    """The image half of an open_clip model definition, as plain JSON."""
    parts = {name: definition.get(name) for name in ("embed_dim", "vision_cfg", "quick_gelu")}
    plain: dict[str, Any] = json.loads(json.dumps({"library": "open_clip", **parts}))
    return plain


def _load_timm(config: EncoderConfig) -> Encoder:
    import timm
    from timm.data.config import resolve_model_data_config

    name = config.model.removeprefix(TIMM)
    random = config.pretrained == RANDOM
    options: dict[str, Any] = {}
    if config.image_size is not None:
        options["img_size"] = config.image_size
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = timm.create_model(name, pretrained=not random, num_classes=0, **options)
        data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"encoder {config.model} cannot be loaded: {error}; check the name and the network"
        ) from error
    size = config.image_size or data["input_size"][1:]
    return Encoder(
        model,
        config=config,
        architecture={"library": "timm", "name": name},
        preprocess=_preprocess(config, size, data["mean"], data["std"]),
    )


def _preprocess(config: EncoderConfig, size: Any, mean: Any, deviation: Any) -> PreprocessConfig:
    sides = {*np.atleast_1d(size).tolist()}
    if len(sides) != 1:
        raise ArtifactError(
            f"encoder {config.model} wants {sorted(sides)} pixels; set image_size to one number"
        )
    red, green, blue = (float(value) for value in mean)
    red_dev, green_dev, blue_dev = (float(value) for value in deviation)
    return PreprocessConfig(
        image_size=int(sides.pop()),
        mean=(red, green, blue),
        deviation=(red_dev, green_dev, blue_dev),
    )
