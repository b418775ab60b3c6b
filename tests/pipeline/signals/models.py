"""Small models on disk, as people have them: a CLIP in open_clip's form of a folder, and heads in
the layouts that LAION publishes."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.signals.clip_model import ClipModel
from schemas.declaration import ClipSettings

WEIGHTS = "open_clip_model.safetensors"
WIDTH = 16
"""Features of the small CLIP."""


def write_model(folder: Path, *, seed: int = 0, broken: bool = False) -> Path:
    """A small CLIP with random weights (`broken`: with one that is no number)."""
    import open_clip
    from safetensors.torch import save_file

    config: dict[str, dict[str, Any]] = {
        "model_cfg": {
            "embed_dim": WIDTH,
            "vision_cfg": {
                "image_size": 32,
                "layers": 2,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": 12,
                "vocab_size": 49408,
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.26, 0.27]},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = open_clip.CLIP(**config["model_cfg"]).state_dict()
    if broken:
        state["visual.proj"][0, 0] = torch.nan
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    return folder


def clip_model(folder: Path, *, batch_size: int = 4, **options: Any) -> ClipModel:
    """The model of a folder, not loaded."""
    return ClipModel(ClipSettings(model=f"local-dir:{folder}", batch_size=batch_size, **options))


def write_head(path: Path, tensors: nn.Module | Mapping[str, Tensor]) -> Path:
    """A safetensors file of a module's state, or of tensors."""
    from safetensors.torch import save_file

    state = tensors.state_dict() if isinstance(tensors, nn.Module) else dict(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


class Sequence(nn.Module):
    """Layers in an `nn.Sequential` called `layers`, as LAION's MLPs have them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.layers(rows)
        return found


def improved_aesthetic(width: int = WIDTH) -> nn.Module:
    """LAION's improved aesthetic predictor: no activations."""
    return Sequence(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    ).eval()


def h14_nsfw(width: int = WIDTH) -> nn.Module:
    """LAION's NSFW detector for ViT-H-14."""
    sizes = (width, 1024, 2048, 1024, 256, 128)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.2)]
    return Sequence(*layers, nn.Linear(128, 16), nn.Linear(16, 1)).eval()


class AutokerasNsfw(nn.Module):
    """LAION's NSFW detector for ViT-L-14, brought from Keras to torch."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.linear_1 = nn.Linear(width, 64)
        self.linear_2 = nn.Linear(64, 512)
        self.linear_3 = nn.Linear(512, 256)
        self.linear_4 = nn.Linear(256, 1)

    def forward(self, rows: Tensor) -> Tensor:
        rows = (rows - self.norm.mean) / self.norm.variance.sqrt()
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            rows = layer(rows).relu()
        found: Tensor = self.linear_4(rows).sigmoid()
        return found


class _Norm(nn.Module):
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(width) * 0.1)
        self.register_buffer("variance", torch.rand(width) + 0.5)
