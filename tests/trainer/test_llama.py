"""Llama folders: equal logits to transformers, in and out, and nothing but whole weights."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import CheckpointError
from schemas.vocabulary import Vocabulary
from trainer.llama import INDEX_FILE, WEIGHTS_FILE, export_llama, load_llama
from trainer.model import LanguageModel, ModelConfig, initialise

os.environ.setdefault("HF_HUB_OFFLINE", "1")
NUM_TEXT_IDS = 60
VOCABULARY = Vocabulary(num_text_ids=NUM_TEXT_IDS, num_places=4, codebook_size=8)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500_000.0,
}


def oracle(**options: Any) -> Any:
    """A small LlamaForCausalLM with weights drawn large."""
    transformers: Any = importlib.import_module("transformers")

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-5,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **options})).eval()


def loaded_by_transformers(folder: Path, **options: Any) -> Any:
    """A folder as transformers understands it."""
    transformers: Any = importlib.import_module("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with untied embeddings."""
    path = tmp_path_factory.mktemp("llama")
    oracle().save_pretrained(path)
    return path


def copied(folder: Path, target: Path) -> Path:
    """A copy that a test may damage."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4, "head_dim": 12},
        {"rope_parameters": LLAMA3_ROPE},
    ],
    ids=["grouped", "tied", "wide-heads", "llama3-rope"],
)
def test_text_logits_equal_those_of_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    reference = oracle(**options)
    reference.save_pretrained(tmp_path)
    model = load_llama(tmp_path, VOCABULARY)
    ids = torch.randint(NUM_TEXT_IDS, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(ids).logits[..., :NUM_TEXT_IDS]
        found = model(ids)
    assert found.shape[-1] == VOCABULARY.size
    torch.testing.assert_close(found[..., :NUM_TEXT_IDS], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["dense", "grouped"])
def test_packed_documents_equal_those_of_transformers(folder: Path, attention: str) -> None:
    reference = loaded_by_transformers(folder).eval()
    model = load_llama(folder, VOCABULARY)
    model.attention = attention
    lengths = torch.tensor([7, 1, 20, 12])
    ids = torch.randint(NUM_TEXT_IDS, (1, 40), generator=torch.Generator().manual_seed(1))
    documents = torch.repeat_interleave(torch.arange(4), lengths)[None]
    positions = torch.cat([torch.arange(int(length)) for length in lengths])[None]
    same = documents[:, :, None] == documents[:, None, :]
    mask = (same & torch.ones(40, 40, dtype=torch.bool).tril())[:, None]
    with torch.no_grad():
        expected = reference(ids, attention_mask=mask, position_ids=positions).logits
        found = model(ids, document_ids=documents, position_ids=positions)
        leaking = reference(ids).logits
    expected = expected[..., :NUM_TEXT_IDS]
    torch.testing.assert_close(found[..., :NUM_TEXT_IDS], expected, atol=1e-5, rtol=1e-5)
    assert (leaking[..., :NUM_TEXT_IDS] - expected).abs().max() > 0.1, "the mask matters here"


def test_new_rows_are_drawn_like_the_old_ones_and_by_the_seed(tmp_path: Path) -> None:
    reference = oracle()
    with torch.no_grad():
        reference.model.embed_tokens.weight.mul_(0.1).add_(torch.arange(32.0))
    reference.save_pretrained(tmp_path)
    many = Vocabulary(num_text_ids=NUM_TEXT_IDS, num_places=0, codebook_size=3000)
    weight = load_llama(tmp_path, many, seed=4).model.embed_tokens.weight.detach()
    text, new = weight[:NUM_TEXT_IDS], weight[NUM_TEXT_IDS:]
    assert torch.equal(text, reference.model.embed_tokens.weight[:NUM_TEXT_IDS])
    torch.testing.assert_close(new.mean(0), text.mean(0), atol=0.003, rtol=0)
    torch.testing.assert_close(new.std(0), text.std(0, correction=0), atol=0, rtol=0.1)
    again = load_llama(tmp_path, many, seed=4).model.embed_tokens.weight
    other = load_llama(tmp_path, many, seed=5).model.embed_tokens.weight
    assert torch.equal(again, weight)
    assert not torch.equal(other, weight)


def test_weights_in_parts_equal_weights_in_one_file(folder: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    loaded_by_transformers(folder).save_pretrained(parts, max_shard_size="20KB")
    assert (parts / INDEX_FILE).is_file()
    assert len(list(parts.glob("*.safetensors"))) > 1
    whole, split = load_llama(folder, VOCABULARY), load_llama(parts, VOCABULARY)
    for name, parameter in whole.named_parameters():
        assert torch.equal(split.get_parameter(name), parameter), name


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_exported_transformers_loads_with_equal_logits(tmp_path: Path, tied: bool) -> None:
    config = ModelConfig(
        vocab_size=VOCABULARY.size,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=48,
        tied_embeddings=tied,
        rope_theta=5000.0,
    )
    model = LanguageModel(config)
    initialise(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    export_llama(model, tmp_path / "out", vocabulary=VOCABULARY)
    reference, report = loaded_by_transformers(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.randint(VOCABULARY.size, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="not empty"):
        export_llama(model, tmp_path / "out", vocabulary=VOCABULARY)


def test_an_exported_model_loads_again_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    model = load_llama(folder, VOCABULARY)
    export_llama(model, tmp_path / "out", vocabulary=VOCABULARY)
    text_only = Vocabulary(num_text_ids=VOCABULARY.size, num_places=0, codebook_size=0)
    again = load_llama(tmp_path / "out", text_only)
    assert torch.equal(again.output_weight[: VOCABULARY.size], model.output_weight)


def change_weights(folder: Path, change: str) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["model.layers.2.mlp.up_proj.weight"] = tensors[name].clone()
    elif change == "misshapen":
        tensors[name] = tensors[name][:-1].clone()
    elif change == "misshapen embeddings":
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing model\.layers\.1\.mlp\.up_proj\.weight"),
        ("unexpected", r"unexpected model\.layers\.2\.mlp\.up_proj\.weight"),
        (
            "misshapen",
            r"misshapen model\.layers\.1\.mlp\.up_proj\.weight \(47, 32\) for \(48, 32\)",
        ),
        ("misshapen embeddings", r"misshapen lm_head\.weight \(63, 32\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, change: str, message: str
) -> None:
    damaged = copied(folder, tmp_path / "damaged")
    change_weights(damaged, change)
    with pytest.raises(CheckpointError, match=message):
        load_llama(damaged, VOCABULARY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not computed"),
        ({"hidden_size": "wide"}, "cannot be used"),
        ({"tie_word_embeddings": True}, "correct tie_word_embeddings"),
    ],
)
def test_what_this_decoder_does_not_compute_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = copied(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_llama(other, VOCABULARY)


def test_unreadable_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_llama(tmp_path / "nowhere", VOCABULARY)
    cut = copied(folder, tmp_path / "cut")
    data = (cut / WEIGHTS_FILE).read_bytes()
    (cut / WEIGHTS_FILE).write_bytes(data[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_llama(cut, VOCABULARY)
    gone = copied(folder, tmp_path / "gone")
    (gone / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_llama(gone, VOCABULARY)
    bare = copied(folder, tmp_path / "bare")
    (bare / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="has no 'vocab_size'"):
        load_llama(bare, VOCABULARY)


def test_a_text_tokenizer_with_more_ids_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"64 rows of embeddings.*65"):
        load_llama(folder, Vocabulary(num_text_ids=65, num_places=4, codebook_size=8))
