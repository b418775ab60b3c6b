"""The published LaVIT weights as an artifact: other names, the same numbers, the official softmax.

For checking against published codes, and not for a corpus: the licence forbids to improve another
language model with these weights or with what they write. The head becomes `leaky` and `euclidean`,
so that all rows are computed (2.3 times the time of kept rows at 94 of 256) and the codebook is
taken as long as its rows are. Their sampling becomes a deterministic rule. The published decoders
end in a diffusion model's conditions and cannot rebuild features, so there is none here.

Official loading is lenient, and skips a missing tensor in silence; here every name and shape has to
fit. `.bin` files are pickles, read with `torch.load(weights_only=True)`, which builds tensors and
runs no code of theirs; nowhere else is a pickle read. Reading needs memory for the encoder twice,
about 8 GB.
"""

import json
import math
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import ArtifactError
from schemas.fingerprint import file_sha256
from tokenizer.artifact import ENCODER_FOLDER, FORMAT, ArtifactConfig, check_output, save_artifact
from tokenizer.config import (
    CLIP_DEVIATION,
    CLIP_MEAN,
    DecisionConfig,
    EncoderConfig,
    HeadConfig,
    PreprocessConfig,
)
from tokenizer.encoder import LOCAL, TIMM, TIMM_FILE, Encoder, encoder_folder, folder_reference
from tokenizer.model import weight_shapes
from tokenizer.weights import Arrays, check_shapes

LICENCE = (
    "LaVIT Community License: neither these weights nor their outputs, which includes every image "
    "sentence written with them, may be used to improve another large language model"
)
HEAD_FILE, ENCODER_FILE, OTHER_MERGER = "tokenizer_encoder", "eva_vitg_psz14", "visual_weight"
SUFFIXES = (".safetensors", ".bin")
NUM_HEADS = 16
"""Heads of the merger: no tensor tells how many there are."""
ENCODER_HEAD_WIDTH = 88
UNUSED = ("vit_proj.",)
"""Tensors that decide no codes: the projection of the continuous path into the language model."""
_REMEDY = "fetch the official file again"

# What unpickling raises on damaged bytes, besides its own error.
_PICKLE_ERRORS = (EOFError, ValueError, LookupError, TypeError, AttributeError)

_NAMES = {
    "token_predictor.in_conv.0": "selector.norm",
    "token_predictor.in_conv.1": "selector.in_proj",
    "token_predictor.out_conv.0": "selector.out_proj.0",
    "token_predictor.out_conv.2": "selector.out_proj.1",
    "token_predictor.out_conv.4": "selector.out_proj.2",
    "causal_encoder.ln_vision": "merger.norm_source",
    "causal_encoder.norm": "merger.norm",
    "encode_task_layer.0": "code_proj.0",
    "encode_task_layer.2": "code_proj.2",
}
_PARTS = {
    "norm0": "norm_self",
    "token_causal_attn": "self_attention",
    "norm1": "norm_cross",
    "token_cross_attn": "cross_attention",
    "norm2": "norm_mlp",
    "mlp": "mlp",
}
_CODEBOOK = "quantize.embedding.weight"
_BLOCK = re.compile(r"causal_encoder\.blocks\.(\d+)\.(\w+)\.(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LavitImport:
    """What was imported."""

    fingerprint: str
    head: HeadConfig
    codebook_norms: tuple[float, float]
    """The shortest and the longest code."""
    left_out: tuple[str, ...]
    """Tensors of the file that decide no codes."""


def import_lavit(
    folder: Path,
    output: str,
    *,
    decision: DecisionConfig,
    encoder: EncoderConfig | None = None,
    leave_out: Iterable[str] = (),
) -> LavitImport:
    """Writes the official weights as an artifact.

    Args:
        folder: the official download, or its `visual_tokenizer` folder.
        output: folder of the artifact, any fsspec URL; it must not exist.
        decision: the deterministic rule in place of the official sampling.
        encoder: the vision tower; None for the folder's own `eva_vitg_psz14`.
        leave_out: beginnings of names in `tokenizer_encoder` that decide no codes.

    Raises:
        ArtifactError: a file is missing or no plain state dict, tensors are missing, unexpected or
            misshapen, or the encoder does not fit.
        StorageError: the artifact cannot be written.
    """
    check_output(output)
    path = find_file(folder, HEAD_FILE)
    state = read_state(path)
    unused = (*UNUSED, *leave_out)
    left_out = sorted(name for name in state if name.startswith(unused))
    state = {name: array for name, array in state.items() if not name.startswith(unused)}
    head = head_config(state, where=str(path))
    with _encoder(folder, encoder) as (tower, files, copied):
        _check_encoder(tower, state)
        tensors = head_tensors(state, head, tower, where=str(path))
        norms = np.linalg.norm(tensors["codebook.vectors"].astype(np.float64), axis=1)
        model = tower.config.model
        reference = folder_reference(model, ENCODER_FOLDER) if copied is not None else model
        config = save_artifact(
            output,
            config=ArtifactConfig(
                format=FORMAT,
                encoder=replace(tower.config, model=reference),
                encoder_spec=tower.spec,
                preprocess=replace(tower.preprocess, orientation="stored"),
                head=head,
                decision=decision,
                tensors={},
                files={},
                fingerprint="",
            ),
            tensors=tensors,
            card={
                "source": "LaVIT",
                "licence": LICENCE,
                "files": {file.name: file_sha256(file) for file in (path, *files)},
                "left_out": left_out,
                "codebook_norms": [float(norms.min()), float(norms.max())],
            },
            encoder_folder=copied,
        )
    return LavitImport(
        fingerprint=config.fingerprint,
        head=head,
        codebook_norms=(float(norms.min()), float(norms.max())),
        left_out=tuple(left_out),
    )


def find_file(folder: Path, name: str) -> Path:
    """An official file in a folder or its `visual_tokenizer`, safetensors before a pickle.

    Raises:
        ArtifactError: it is not there; says so too if only the other merger is.
    """
    for place in (folder, folder / "visual_tokenizer"):
        for suffix in SUFFIXES:
            if (place / f"{name}{suffix}").is_file():
                return place / f"{name}{suffix}"
    others = [*folder.glob(f"{OTHER_MERGER}.*"), *folder.glob(f"language_model/{OTHER_MERGER}.*")]
    if name == HEAD_FILE and others:
        raise ArtifactError(
            f"{others[0]} is refused: it holds another merger, which was trained with the language "
            f"model for its continuous input and writes other codes; give the folder of "
            f"{HEAD_FILE}.bin, which the discrete codes come from"
        )
    raise ArtifactError(
        f"{folder}: no {name}.safetensors or {name}.bin there or in its visual_tokenizer; give the "
        "folder of the official download"
    )


def read_state(path: Path) -> dict[str, NDArray[np.float32]]:
    """A file's tensors as float32.

    Raises:
        ArtifactError: it is damaged, holds anything but float tensors by name, or needs code to
            run to be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    except (pickle.UnpicklingError, *_PICKLE_ERRORS) as error:
        raise ArtifactError(
            f"{path} is refused: it is damaged, or reading it would build something other than "
            f"tensors; {_REMEDY}, or convert it to .safetensors where you trust it"
        ) from error
    if not isinstance(state, Mapping):
        raise ArtifactError(f"{path} holds a {type(state).__name__} and no state dict; {_REMEDY}")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (
            torch.float32,
            torch.float16,
            torch.bfloat16,
        ):
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ArtifactError(f"{path}: {name!r} is a {kind} and no float tensor; {_REMEDY}")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def head_config(state: Arrays, *, where: str) -> HeadConfig:
    """The sizes that the tensors tell.

    Raises:
        ArtifactError: a tensor that tells one is missing or has other dimensions.
    """
    codebook_size, code_dim = _shape(state, _CODEBOOK, 2, where=where)
    mlp_width, _ = _shape(state, "causal_encoder.blocks.0.mlp.fc1.weight", 2, where=where)
    (width,) = _shape(state, "causal_encoder.norm.weight", 1, where=where)
    if width % NUM_HEADS:
        raise ArtifactError(
            f"{where}: a width of {width} does not divide into the official {NUM_HEADS} heads; "
            f"{_REMEDY}"
        )
    blocks = {int(found[1]) for found in map(_BLOCK.fullmatch, state) if found is not None}
    return HeadConfig(
        num_heads=NUM_HEADS,
        mlp_width=mlp_width,
        merger_blocks=max(blocks) + 1,
        decoder_blocks=0,
        codebook_size=codebook_size,
        code_dim=code_dim,
        positions="none",
        masking="leaky",
        code_rule="euclidean",
    )


def head_tensors(
    state: Arrays, head: HeadConfig, encoder: Encoder, *, where: str
) -> dict[str, NDArray[Any]]:
    """The official tensors under our names, all of them and no other.

    Raises:
        ArtifactError: names all that are missing, unexpected, misshapen or not finite, as the
            official file has them.
    """
    width = encoder.spec.width
    shapes = weight_shapes(
        head,
        encoder_width=width,
        grid=encoder.spec.grid,
        image_size=encoder.preprocess.image_size,
    )
    # Ours alone: the official features are neither centred nor scaled.
    own = {"mean": np.zeros(width, np.float32), "deviation": np.ones(width, np.float32)}
    official = {official_name(name): name for name in shapes if name not in own}
    wanted = {name: shapes[ours] for name, ours in official.items()}
    check_shapes(state, shapes=wanted, url=where, remedy=_REMEDY)
    return own | {ours: state[name] for name, ours in official.items()}


def official_name(name: str) -> str:
    """What the official file calls a weight of ours."""
    if name == "codebook.vectors":
        return _CODEBOOK
    block = re.fullmatch(r"merger\.blocks\.(\d+)\.(\w+)\.(.+)", name)
    if block is not None:
        parts = {ours: theirs for theirs, ours in _PARTS.items()}
        return f"causal_encoder.blocks.{block[1]}.{parts[block[2]]}.{block[3]}"
    layer, _, kind = name.rpartition(".")
    layers = {ours: theirs for theirs, ours in _NAMES.items()}
    return f"{layers[layer]}.{kind}"


def write_eva_folder(state: Arrays, folder: Path, *, where: str) -> None:
    """The official encoder as a timm folder, whose names are the same.

    Raises:
        ArtifactError: tensors are missing, unexpected, misshapen or not finite.
    """
    import timm
    from safetensors.numpy import save_file

    options = _eva_options(state, where=where)
    classes = _shape(state, "head.weight", 2, where=where)[0]
    with torch.device("meta"):
        tower = timm.create_model("eva_giant_patch14_224", num_classes=classes, **options)
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    check_shapes(state, shapes=shapes, url=where, remedy=_REMEDY)
    size = options["img_size"]
    definition = {
        "architecture": "eva_giant_patch14_224",
        "num_classes": classes,
        "model_args": options,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "mean": CLIP_MEAN,
            "std": CLIP_DEVIATION,
            "interpolation": "bicubic",
            "num_classes": classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    folder.mkdir()
    (folder / TIMM_FILE).write_text(json.dumps(definition, indent=1, sort_keys=True) + "\n")
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    save_file(arrays, folder / "model.safetensors")


def _eva_options(state: Arrays, *, where: str) -> dict[str, Any]:
    """timm's options for the sizes that the tensors tell."""
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4, where=where)
    hidden, _ = _shape(state, "blocks.0.mlp.fc1.weight", 2, where=where)
    _, tokens, _ = _shape(state, "pos_embed", 3, where=where)
    grid = math.isqrt(tokens - 1)
    if width % ENCODER_HEAD_WIDTH or grid * grid != tokens - 1:
        raise ArtifactError(
            f"{where}: a width of {width} or {tokens - 1} patches is not that of the official "
            f"encoder, with heads of {ENCODER_HEAD_WIDTH} and a square grid; {_REMEDY}"
        )
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in state]
    return {
        "img_size": grid * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": max(int(found[1]) for found in blocks if found is not None) + 1,
        "num_heads": width // ENCODER_HEAD_WIDTH,
        "mlp_ratio": (hidden + 0.5) / width,  # timm rounds down
        "global_pool": "token",
    }


@contextmanager
def _encoder(
    folder: Path, named: EncoderConfig | None
) -> Iterator[tuple[Encoder, list[Path], Path | None]]:
    """The tower, the official files it was made of, and the folder to copy, if it has one."""
    if named is not None:
        config = replace(named, feature_layer=-1, center=False)
        yield Encoder.load(config), [], encoder_folder(config.model)
        return
    try:
        path = find_file(folder, ENCODER_FILE)
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}; or name the encoder, `--encoder EVA01-g-14 --pretrained TAG`"
        ) from error
    with tempfile.TemporaryDirectory(prefix="lavit-") as scratch:
        made = Path(scratch) / "eva"
        write_eva_folder(read_state(path), made, where=str(path))
        config = EncoderConfig(model=f"{TIMM}{LOCAL}{made}", feature_layer=-1, center=False)
        yield Encoder.load(config), [path], made


def _check_encoder(encoder: Encoder, state: Arrays) -> None:
    """Refuses an encoder that these weights cannot have been trained on."""
    (width,) = state["causal_encoder.norm.weight"].shape
    if encoder.spec.width != width:
        raise ArtifactError(
            f"encoder {encoder.config.model} gives features of width {encoder.spec.width}, the "
            f"official weights take {width}; the official encoder is EVA01-g-14"
        )
    own = PreprocessConfig(image_size=encoder.preprocess.image_size)
    for name, official in (("mean", own.mean), ("deviation", own.deviation)):
        if getattr(encoder.preprocess, name) != official:
            raise ArtifactError(
                f"encoder {encoder.config.model} has the {name} {getattr(encoder.preprocess, name)}"
                f", the official weights want CLIP's, {official}"
            )


def _shape(state: Arrays, name: str, num_dims: int, *, where: str) -> tuple[int, ...]:
    """The shape of a tensor that tells sizes."""
    if name not in state:
        raise ArtifactError(f"{where}: weight {name!r} is missing; {_REMEDY}")
    if state[name].ndim != num_dims:
        raise ArtifactError(
            f"{where}: weight {name!r} has shape {state[name].shape}, expected {num_dims} "
            f"dimensions; {_REMEDY}"
        )
    return tuple(state[name].shape)
