"""Llama-family weights: a local folder in, its vocabulary extended by image words, and a folder
out.

Text rows of the embeddings keep their place, because the joint vocabulary begins with the text ids;
rows for special tokens and image words are drawn like the old ones. Strict: a missing, unexpected
or misshapen weight, or an architecture that this decoder does not compute, is an error. Weights are
held once in float32 while loading (4 bytes a parameter).

V ids in the vocabulary, D width.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemas.errors import CheckpointError
from schemas.storage import storage_errors
from schemas.vocabulary import Vocabulary
from trainer.model import LanguageModel, ModelConfig
from trainer.optimizer import load_tensors
from trainer.rope import RopeScaling

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_EMBEDDINGS = "model.embed_tokens.weight"
_LOGITS = "lm_head.weight"


def load_llama(folder: str | Path, vocabulary: Vocabulary, *, seed: int = 0) -> LanguageModel:
    """A model that starts from the weights of a local Llama-family folder, float32, on the CPU.

    Args:
        folder: `config.json` and `model.safetensors`, whole or in parts with an index.
        vocabulary: of the stream; its text ids are those of the folder's own tokenizer.
        seed: draws the rows of special tokens and image words: normal, with the mean and deviation
            that the text rows have in each column.

    Raises:
        CheckpointError: not a Llama, fewer rows than text ids, or weights that do not fit.
    """
    folder = Path(folder)
    original = read_llama_config(folder)
    if original.vocab_size < vocabulary.num_text_ids:
        raise CheckpointError(
            f"{folder} has {original.vocab_size} rows of embeddings, the corpus's text tokenizer "
            f"{vocabulary.num_text_ids} ids: it was made with another tokenizer"
        )
    tensors = _read_weights(folder)
    _drop_redundant(tensors, original, folder)
    generator = torch.Generator().manual_seed(seed)
    for name in (_EMBEDDINGS, _LOGITS):
        if name in tensors:
            _check_rows(name, tensors[name], original, folder)
            tensors[name] = _extend(tensors[name], vocabulary, generator)
    config = ModelConfig.from_json({**original.as_json(), "vocab_size": vocabulary.size})
    model = LanguageModel(config)
    load_tensors(dict(model.named_parameters()), tensors, what=str(folder))
    return model


def export_llama(model: LanguageModel, folder: str | Path, *, vocabulary: Vocabulary) -> None:
    """Writes `config.json` and `model.safetensors` that Llama implementations load, float32.

    Raises:
        CheckpointError: the folder exists and is not empty.
        StorageError: it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty: give a new folder to export to")
    tensors = {
        name: parameter.detach().float().cpu().contiguous()
        for name, parameter in model.named_parameters()
    }
    config = llama_config(model.config, vocabulary)
    with storage_errors("write", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def llama_config(config: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """`config.json` of a model, with rotary settings in the older and the newer spelling."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency_factor,
            "high_freq_factor": config.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_positions,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "max_position_embeddings": 131_072 if config.rope_scaling is not None else 8192,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
        "dtype": "float32",
    }


def read_llama_config(folder: Path) -> ModelConfig:
    """The sizes in a folder's `config.json`.

    Raises:
        CheckpointError: it is missing or unreadable, or describes something else than a Llama.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: give the local folder of a Llama-family model")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return _parse_config(value, path)
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error}: it is no Llama configuration") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def _parse_config(value: Mapping[str, Any], path: Path) -> ModelConfig:
    for key, expected in (
        ("model_type", "llama"),
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
    ):
        if value.get(key, expected) != expected:
            raise CheckpointError(
                f"{path}: {key} is {value[key]!r}, and this decoder computes {expected!r} only"
            )
    rope = value.get("rope_parameters") or value.get("rope_scaling") or {}
    theta = rope.get("rope_theta", value.get("rope_theta", 10_000.0))
    return ModelConfig(
        vocab_size=value["vocab_size"],
        width=value["hidden_size"],
        num_layers=value["num_hidden_layers"],
        num_heads=value["num_attention_heads"],
        num_kv_heads=value.get("num_key_value_heads") or value["num_attention_heads"],
        mlp_width=value["intermediate_size"],
        head_width=value.get("head_dim") or 0,
        tied_embeddings=value.get("tie_word_embeddings", False),
        rope_theta=float(theta),
        rope_scaling=_parse_scaling(rope, path),
        norm_epsilon=value.get("rms_norm_eps", 1e-6),
    )


def _parse_scaling(rope: Mapping[str, Any], path: Path) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(
            f"{path}: rotary scaling {kind!r} is not computed here, only default and llama3"
        )
    return RopeScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder in float32."""
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            part = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): copy the model again"
            ) from error
        if twice := sorted(part.keys() & tensors.keys()):
            raise CheckpointError(f"{path} holds {twice[0]} a second time: copy the model again")
        tensors |= {name: tensor.float() for name, tensor in part.items()}
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if not index.is_file():
        return [folder / WEIGHTS_FILE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): copy the model again") from error
    return [folder / name for name in names]


def _drop_redundant(tensors: dict[str, Tensor], config: ModelConfig, folder: Path) -> None:
    """Removes what some writers store though it follows from the rest."""
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]
    if config.tied_embeddings and _LOGITS in tensors:
        logits = tensors.pop(_LOGITS)
        if _EMBEDDINGS in tensors and not torch.equal(logits, tensors[_EMBEDDINGS]):
            raise CheckpointError(
                f"{folder} says that embeddings are tied, but {_LOGITS} differs from "
                f"{_EMBEDDINGS}: correct tie_word_embeddings in {CONFIG_FILE}"
            )


def _check_rows(name: str, rows: Tensor, config: ModelConfig, folder: Path) -> None:
    if rows.shape != (config.vocab_size, config.width):
        raise CheckpointError(
            f"{folder}: misshapen {name} {tuple(rows.shape)}, {CONFIG_FILE} says "
            f"{(config.vocab_size, config.width)}"
        )


def _extend(rows: Tensor, vocabulary: Vocabulary, generator: torch.Generator) -> Tensor:
    """The text rows (V, D), and drawn ones behind them."""
    text = rows[: vocabulary.num_text_ids]
    num_new = vocabulary.size - vocabulary.num_text_ids
    noise = torch.empty((num_new, rows.shape[1])).normal_(generator=generator)
    return torch.cat([text, text.mean(dim=0) + noise * text.std(dim=0, correction=0)])
