"""The frozen image tower: any open_clip or timm model, by name or folder, read at a block of it.

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
from tokenizer.weights import Arrays, check_shapes, read_tensors, tensors_digest

BUILTIN, LOCAL, HUB, TIMM = "builtin:", "local-dir:", "hf-hub:", "timm:"
RANDOM = "random"
OPEN_CLIP_FILE, TIMM_FILE = "open_clip_config.json", "config.json"
"""What says the architecture in a folder of either library."""
_ASSETS = Path(__file__).parent / "assets"


def encoder_folder(model: str, *, base: Path | None = None) -> Path | None:
    """The local folder an encoder name means, or None for a model that is fetched by name.

    Args:
        model: as in `EncoderConfig.model`.
        base: what relative `local-dir:` paths start from; None for the working directory.

    Raises:
        ArtifactError: the folder is missing, or lacks its definition or safetensors.
    """
    definition = OPEN_CLIP_FILE
    if model.startswith(BUILTIN):
        folder = _ASSETS / model.removeprefix(BUILTIN)
    elif model.startswith(LOCAL):
        folder = (base or Path()) / model.removeprefix(LOCAL)
    elif model.startswith(TIMM + LOCAL):
        definition = TIMM_FILE
        folder = (base or Path()) / model.removeprefix(TIMM + LOCAL)
    else:
        return None
    if not (folder / definition).is_file():
        library = "open_clip" if definition == OPEN_CLIP_FILE else "timm"
        raise ArtifactError(
            f"encoder {model}: no {definition} in {folder}; give a folder in {library}'s "
            "layout (a relative path starts at the artifact, or where the command was started)"
        )
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"encoder {model}: no .safetensors weights in {folder}; pickled weights are not "
            "loaded, convert them first"
        )
    return folder


def folder_reference(model: str, path: str) -> str:
    """The name of an encoder that lies at `path` in the same layout as `model`'s folder."""
    return f"{TIMM}{LOCAL}{path}" if model.startswith(TIMM) else f"{LOCAL}{path}"


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
        cls,
        config: EncoderConfig,
        *,
        base: Path | None = None,
        expected: str | None = None,
        preprocess: PreprocessConfig | None = None,
    ) -> "Encoder":
        """Builds the tower and loads its weights.

        Args:
            config: which model, weights and layer.
            base: what relative `local-dir:` paths start from.
            expected: the weight digest it must have.
            preprocess: the preprocessing it is used with, which must be its own but for what an
                encoder does not say (orientation); None for its own.

        Raises:
            ArtifactError: it cannot be found or loaded, or its weights or its preprocessing are
                others than expected.
        """
        folder = encoder_folder(config.model, base=base)
        load = _load_timm if config.model.startswith(TIMM) else _load_open_clip
        encoder = load(config, folder=folder)
        if expected is not None and encoder.spec.digest != expected:
            raise ArtifactError(
                f"encoder {config.model}: its weights ({encoder.spec.digest[:16]}) are not those "
                f"this tokenizer was trained on ({expected[:16]}); restore the original encoder"
            )
        if preprocess is not None:
            encoder.use_preprocess(preprocess)
        return encoder

    def use_preprocess(self, preprocess: PreprocessConfig) -> None:
        """Takes over a recorded preprocessing.

        Raises:
            ArtifactError: it has another size, mean or deviation than this encoder.
        """
        for name in ("image_size", "mean", "deviation"):
            own, given = getattr(self.preprocess, name), getattr(preprocess, name)
            if own != given:
                raise ArtifactError(
                    f"encoder {self.config.model}: preprocess.{name} is recorded as {given}, but "
                    f"this encoder has {own}; restore the original encoder, or train again"
                )
        self.preprocess = preprocess

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to (B, N, D) patch features in raster order, float32."""
        return self.look(pixels)

    def look(self, pixels: Tensor) -> Tensor:
        """`forward` with a gradient to the pixels: how a drawn picture is judged."""
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


def _load_timm(config: EncoderConfig, *, folder: Path | None) -> Encoder:
    import timm
    from timm.data.config import resolve_model_data_config

    random = config.pretrained == RANDOM
    options: dict[str, Any] = {}
    if config.image_size is not None:
        options["img_size"] = config.image_size
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if folder is None:
                name = config.model.removeprefix(TIMM)
                architecture: dict[str, Any] = {"name": name}
                model = timm.create_model(name, pretrained=not random, num_classes=0, **options)
            else:
                architecture = _timm_definition(folder)
                model = timm.create_model(f"{LOCAL}{folder}", pretrained=False, **options)
        data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"encoder {config.model} cannot be loaded: {error}; check the name, the network or the "
            "folder"
        ) from error
    if folder is not None and not random:
        _fill(model, _folder_weights(config.model, folder), url=config.model)
    size = config.image_size or data["input_size"][1:]
    return Encoder(
        model,
        config=config,
        architecture={"library": "timm", **architecture},
        preprocess=_preprocess(config, size, data["mean"], data["std"]),
    )


def _timm_definition(folder: Path) -> dict[str, Any]:
    """What a timm folder says of its architecture, without paths."""
    definition = json.loads((folder / TIMM_FILE).read_text(encoding="utf-8"))
    return {"name": definition["architecture"], "options": definition.get("model_args", {})}


def _folder_weights(model: str, folder: Path) -> Arrays:
    """The weights of a timm folder, which holds one file of them."""
    paths = sorted(folder.glob("*.safetensors"))
    if len(paths) > 1:
        raise ArtifactError(
            f"encoder {model}: {len(paths)} .safetensors files in {folder}; leave one of them there"
        )
    return read_tensors(paths[0], url=model)


def _fill(module: nn.Module, arrays: Arrays, *, url: str) -> None:
    """Loads weights by name. timm's own loader is lenient where a classifier has another size."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_shapes(arrays, shapes=wanted, url=url)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


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
