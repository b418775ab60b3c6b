"""Codes do not depend on company, order, calls or processes, nor on which rows are computed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.exactness import Words, alone, draw, encode, in_processes, other_execution, shuffled
from tokenizer.artifact import Artifact, ArtifactConfig, EncoderSpec
from tokenizer.config import DecisionConfig, EncoderConfig, HeadConfig, PreprocessConfig
from tokenizer.decision import decide
from tokenizer.model import TokenizerModel
from tokenizer.tokenize import DynamicTokenizer, ExecutionConfig

MARGIN = 1e-5
NUM_IMAGES = 300


@dataclass
class Sizes:
    """A head to draw, and how it decides."""

    grid: int
    width: int
    blocks: int
    positions: str
    code_rule: str
    decision: DecisionConfig
    seed: int


@st.composite
def sizes(draw_one: st.DrawFn) -> Sizes:
    grid = draw_one(st.integers(3, 9))
    rules = [
        DecisionConfig(rule="threshold", tau=0.6),
        DecisionConfig(rule="budget", offset=0.5),
        DecisionConfig(rule="fixed", num_kept=grid * grid // 3),
    ]
    return Sizes(
        grid=grid,
        width=draw_one(st.sampled_from([16, 32, 96])),
        blocks=draw_one(st.integers(1, 3)),
        positions=draw_one(st.sampled_from(["2d", "none"])),
        code_rule=draw_one(st.sampled_from(["cosine", "euclidean"])),
        decision=draw_one(st.sampled_from(rules)),
        seed=draw_one(st.integers(0, 10_000)),
    )


def draw_tokenizer(chosen: Sizes) -> DynamicTokenizer:
    """A head of random weights with peaked attention; its encoder is left out."""
    torch.manual_seed(chosen.seed)
    head = HeadConfig(
        num_heads=4,
        mlp_width=2 * chosen.width,
        merger_blocks=chosen.blocks,
        decoder_blocks=0,
        codebook_size=200,
        code_dim=8,
        positions=chosen.positions,
        code_rule=chosen.code_rule,
    )
    preprocess = PreprocessConfig(image_size=4 * chosen.grid)
    model = TokenizerModel(
        head, encoder_width=chosen.width, grid=chosen.grid, image_size=preprocess.image_size
    )
    for name, weight in model.named_parameters():
        if name.endswith(("qkv.weight", "query.weight", "key.weight", "out_proj.2.weight")):
            torch.nn.init.normal_(weight, std=4 * chosen.width**-0.5)
    config = ArtifactConfig(
        format=2,
        encoder=EncoderConfig(),
        encoder_spec=EncoderSpec(width=chosen.width, grid=chosen.grid, architecture={}, digest=""),
        preprocess=preprocess,
        head=head,
        decision=chosen.decision,
        tensors={},
        files={},
        fingerprint="",
    )
    return DynamicTokenizer(
        Artifact(config, {}, {}),
        torch.nn.Identity(),  # type: ignore[arg-type]  # features are given
        model.eval().requires_grad_(False),
        execution=ExecutionConfig(batch_size=6),
    )


def batches(features: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(features), size):
        chunk = features[first : first + size]
        padding = features.new_zeros(size - len(chunk), *features.shape[1:])
        yield first, torch.cat([chunk, padding])


def decision_margin(logits: Tensor, config: DecisionConfig) -> Tensor:
    """(B,) how far the nearest keep decision of an image is from the other one."""
    ordered = logits.double().sort(dim=1, descending=True).values
    if config.rule == "threshold":
        bound = np.log(config.tau / (1 - config.tau)) + config.offset
        nearest: Tensor = (ordered - bound).abs().amin(dim=1)
        return nearest
    total = torch.sigmoid(ordered - config.offset).sum(dim=1)
    counts = torch.full_like(total, config.num_kept)
    half = torch.ones_like(total)
    if config.rule == "budget":
        counts, half = total.round(), (total - total.floor() - 0.5).abs()
    index = counts.long().clamp(1, logits.shape[1] - 1)[:, None]
    gap = (ordered.gather(1, index - 1) - ordered.gather(1, index))[:, 0]
    margin: Tensor = torch.minimum(gap, half)
    return margin


@given(sizes())
@settings(max_examples=30, deadline=None)
def test_kept_rows_alone_give_the_dense_codes(chosen: Sizes) -> None:
    tokenizer = draw_tokenizer(chosen)
    model = tokenizer.model
    features = torch.randn(20, chosen.grid**2, chosen.width)
    with tokenizer.fixed_environment():
        keep_mask, codes = tokenizer.codes_of_features(batches(features, 6), num_images=20)
        logits = model.keep_logits(features)
        dense_mask = decide(logits, config=chosen.decision)
        vectors = model.compress_dense(features, dense_mask)
    clear = decision_margin(logits, chosen.decision) > MARGIN
    assert clear.sum() > 15
    assert np.array_equal(keep_mask[clear], dense_mask[clear].numpy())
    scores = 2 * vectors @ model.codebook.vectors.t() - model.codebook.vectors.square().sum(dim=1)
    best = scores.topk(2, dim=-1).values  # of unit vectors, less the squared distances
    table = np.full(keep_mask.shape, -1)
    table[keep_mask] = codes
    margins = (best[..., 0] - best[..., 1]).numpy()
    judged = keep_mask & dense_mask.numpy() & clear.numpy()[:, None] & (margins > MARGIN)
    assert judged.sum() > 0.9 * keep_mask.sum() > 10  # or the next line would say little
    assert np.array_equal(table[judged], model.codebook(vectors).numpy()[judged])


@pytest.fixture(scope="module")
def tokenizer(artifact: str) -> DynamicTokenizer:
    return DynamicTokenizer.load(artifact, batch_size=16)


@pytest.fixture(scope="module")
def drawn() -> list[bytes]:
    return [draw(seed) for seed in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def words(tokenizer: DynamicTokenizer, drawn: list[bytes]) -> Words:
    return encode(tokenizer, drawn, call_size=NUM_IMAGES)


def test_order_and_calls_do_not_matter(
    tokenizer: DynamicTokenizer, drawn: list[bytes], words: Words
) -> None:
    assert len({int((row >= 0).sum()) for row in words}) > 10
    assert shuffled(tokenizer, drawn, words, call_size=37) == 0
    assert alone(tokenizer, drawn, words, count=12) == 0


def test_a_fresh_process_gives_the_same(artifact: str, drawn: list[bytes], words: Words) -> None:
    assert in_processes(artifact, drawn, words, count=1, options={"batch_size": 16}) == 0


def test_a_difference_is_found(
    tokenizer: DynamicTokenizer, drawn: list[bytes], words: Words
) -> None:
    """Or the tests above would see nothing."""
    others = [row.copy() for row in words]
    others[5][others[5] >= 0] += 1
    assert shuffled(tokenizer, drawn, others, call_size=100) == 1


def test_other_batch_shapes_agree_nearly_always(
    tokenizer: DynamicTokenizer, drawn: list[bytes], words: Words
) -> None:
    found = other_execution(tokenizer, drawn, words, batch_size=5)
    assert found["keep_decisions"] > 0.999
    assert found["codes"] > 0.999


def test_a_heads_shapes_are_fixed(tokenizer: DynamicTokenizer, drawn: list[bytes]) -> None:
    """Words are an image's own because every product has one shape, whatever is in the call."""
    shapes: dict[int, set[int]] = {}

    def remember(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        rows = inputs[0].shape[1]
        shapes.setdefault(rows, set()).add(len(inputs[0]))

    hook = tokenizer.model.codebook.register_forward_pre_hook(remember)
    try:
        for count in (1, 17, 50, 130):
            tokenizer.encode_codes(drawn[:count])
    finally:
        hook.remove()
    assert len(shapes) > 2
    assert all(len(sizes) == 1 for sizes in shapes.values())
