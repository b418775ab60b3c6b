"""The small CLIP as an open_clip local folder: configuration, own tokenizer, fp16 weights.

Such a folder is what `open_clip.create_model_and_transforms("local-dir:FOLDER")` and
`get_tokenizer("local-dir:FOLDER")` open without a network, so the demo's encoder enters by the same
code path as a real one. 1.8 M parameters, 3.7 MB; fp16 costs less than 0.001 of a score.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.demo.captions import tokenizer_definition
from jobs.demo.clip_data import (
    CONTEXT_WORDS,
    END_ID,
    IMAGE_SIDE,
    PAD_ID,
    SPECIAL_FIRST,
    SPECIAL_LAST,
    VOCAB_SIZE,
)

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "card.json"

MODEL: Mapping[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": IMAGE_SIDE,
        "patch_size": 8,
        "width": 128,
        "head_width": 32,
        "layers": 6,
        "mlp_ratio": 4.0,
        # Averaging the patches asks every one of them to tell its part; a class token would let
        # them stay silent, and the visual tokenizer reads patches.
        "pool_type": "avg",
    },
    "text_cfg": {
        "context_length": CONTEXT_WORDS,
        "vocab_size": VOCAB_SIZE,
        "hf_tokenizer_name": "local",  # any non-empty name: local folders bring their own
        "width": 128,
        "heads": 4,
        "layers": 3,
        "pool_type": "argmax",
        "pad_id": PAD_ID,
        "eos_id": END_ID,
    },
}
PREPROCESS: Mapping[str, Any] = {
    "size": [IMAGE_SIDE, IMAGE_SIDE],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}


def write_clip_folder(folder: Path, model: Any) -> None:
    """Writes the model's folder; weights last and whole, so that a folder with weights is complete.

    Args:
        folder: made where it is missing.
        model: an `open_clip.CLIP` built from MODEL.
    """
    import torch
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG_FILE, {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS})
    definition = tokenizer_definition(first=SPECIAL_FIRST, last=SPECIAL_LAST)
    _write_json(folder / "tokenizer.json", definition)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_WORDS,
        "pad_token": SPECIAL_FIRST[0],
        "unk_token": SPECIAL_FIRST[1],
        "eos_token": SPECIAL_LAST[0],
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    temporary = folder / f".tmp-{WEIGHTS_FILE}"
    temporary.write_bytes(save(weights))
    temporary.replace(folder / WEIGHTS_FILE)


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes how the model was made and what it measures."""
    _write_json(folder / CARD_FILE, card)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
