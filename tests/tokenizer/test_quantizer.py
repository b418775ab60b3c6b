"""The codebook learns from kept vectors, stays alive, and lets gradients through."""

import pytest
import torch
from torch.nn.functional import normalize

from tokenizer.codebook import Codebook
from tokenizer.config import TrainConfig
from tokenizer.quantizer import Quantizer
from tokenizer.ranks import SpreadRows


def clusters(num: int, *, each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit centres, and unit vectors around them."""
    generator = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(num, 8, generator=generator), dim=-1)
    noise = 0.03 * torch.randn(num, each, 8, generator=generator)
    return centres, normalize(centres[:, None] + noise, dim=-1).flatten(0, 1)


def make(*, size: int, vectors_per_step: float, **options: object) -> Quantizer:
    config = TrainConfig(**options)  # type: ignore[arg-type]
    return Quantizer(config, codebook_size=size, code_dim=8, vectors_per_step=vectors_per_step)


def test_refitted_codes_keep_their_numbers_and_idle_ones_move() -> None:
    torch.manual_seed(0)
    centres, vectors = clusters(6, each=100)
    quantizer = make(size=8, vectors_per_step=600)
    idle = -normalize(centres.mean(dim=0, keepdim=True), dim=-1).expand(2, -1)
    quantizer.resume(torch.cat([centres, idle]), torch.ones(8))
    quantizer.start(SpreadRows(vectors), anew=False)
    assert (quantizer.vectors[:6] @ centres.t()).argmax(dim=1).tolist() == list(range(6))
    assert (quantizer.vectors[6:] @ vectors.t()).max(dim=1).values.min() > 0.9


def test_sums_and_counts_are_seeded_together() -> None:
    """Sums without counts would throw the codebook about at the second step."""
    torch.manual_seed(0)
    _, vectors = clusters(6, each=100)
    quantizer = make(size=6, vectors_per_step=150, dead_code_share=0.0)
    quantizer.start(SpreadRows(vectors))
    state = quantizer.moving._codebook
    assert float(state.cluster_size.sum()) == pytest.approx(150)
    torch.testing.assert_close(state.embed_avg, state.embed * state.cluster_size[..., None])
    before = quantizer.vectors.clone()
    for first in (0, 150):
        _, codes, _ = quantizer(vectors[first::4])
        assert len(codes.unique()) == 6
    assert (before * quantizer.vectors).sum(dim=1).min() > 0.999


def test_a_restart_is_not_undone_by_what_the_code_was() -> None:
    """Without a new sum and count, the next average would pull the code back."""
    torch.manual_seed(0)
    centres, vectors = clusters(3, each=200)
    quantizer = make(size=3, vectors_per_step=100, codebook_decay=0.8, dead_code_share=0.3)
    quantizer.resume(centres, torch.ones(3))
    crowd = vectors[:200]
    state = quantizer.moving._codebook
    for _ in range(40):
        before = state.cluster_size.clone()
        quantizer(crowd)
        if bool((state.cluster_size[0] > before[0])[1:].any()):
            break
    restarted = int((state.cluster_size - before)[0, 1:].argmax()) + 1
    found = quantizer.vectors[restarted].clone()
    assert float((crowd @ found).max()) == pytest.approx(1.0, abs=1e-5), "a vector of the batch"
    count = state.cluster_size[0, restarted]
    torch.testing.assert_close(state.embed_avg[0, restarted], found * count)
    _, codes, _ = quantizer(crowd, learn=False)
    quantizer(crowd[codes != restarted])  # it gets nothing now, and may only fade
    assert float(found @ quantizer.vectors[restarted]) > 0.999


@pytest.mark.parametrize("kind", ["ema", "simvq"])
def test_gradients_pass_straight_through(kind: str) -> None:
    torch.manual_seed(0)
    _, vectors = clusters(4, each=20)
    quantizer = make(size=8, vectors_per_step=80, quantizer=kind, commitment_weight=0.0)
    quantizer.start(SpreadRows(vectors))
    codebook = quantizer.vectors.detach().clone()
    inputs = vectors.clone().requires_grad_()
    quantized, codes, _ = quantizer(inputs)
    torch.testing.assert_close(quantized.detach(), codebook[codes])
    weights = torch.randn_like(quantized)
    (grad,) = torch.autograd.grad((quantized * weights).sum(), inputs)
    assert torch.equal(grad, weights)


def test_seeded_counts_keep_the_codebook_in_place() -> None:
    torch.manual_seed(0)
    _, vectors = clusters(8, each=200)
    # The dead-code bound is 4 of 20 expected a code: without seeded counts all would restart.
    quantizer = make(size=8, vectors_per_step=160, dead_code_share=0.2)
    quantizer.start(SpreadRows(vectors))
    before = quantizer.vectors.clone()
    # Only one cluster comes for some steps: the others must stay where they were.
    for _ in range(5):
        quantizer(vectors[:160])
    assert (before * quantizer.vectors).sum(dim=1).min() > 0.99


def test_moving_averages_follow_the_vectors() -> None:
    torch.manual_seed(0)
    centres, vectors = clusters(4, each=100)
    quantizer = make(size=4, vectors_per_step=400, codebook_decay=0.9)
    quantizer.start(SpreadRows(vectors))
    shifted = normalize(vectors + torch.tensor([0.4] + [0.0] * 7), dim=-1)
    target = normalize(centres + torch.tensor([0.4] + [0.0] * 7), dim=-1)
    before = (target @ quantizer.vectors.t()).max(dim=1).values
    for _ in range(60):
        quantizer(shifted)
    after = (target @ quantizer.vectors.t()).max(dim=1).values
    assert after.min() > 0.995
    assert before.min() < 0.98


@pytest.mark.parametrize("stop", [False, True])
def test_dead_codes_restart_until_told_not_to(stop: bool) -> None:
    torch.manual_seed(0)
    _, vectors = clusters(6, each=100)
    quantizer = make(size=6, vectors_per_step=100, codebook_decay=0.8, dead_code_share=0.2)
    quantizer.start(SpreadRows(vectors))
    if stop:
        quantizer.stop_restarts()
    crowd = vectors[:100]  # one cluster only: five codes die
    for _ in range(40):
        quantizer(crowd)
    near = ((crowd @ quantizer.vectors.t()).max(dim=0).values > 0.97).sum()
    assert int(near) == (1 if stop else 6)


def test_lookup_learns_nothing() -> None:
    torch.manual_seed(0)
    _, vectors = clusters(4, each=50)
    quantizer = make(size=4, vectors_per_step=200)
    quantizer.start(SpreadRows(vectors))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.lookup(vectors[None] * 1.0)
    quantizer(vectors, learn=False)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_simvq_moves_all_codes_by_one_map() -> None:
    torch.manual_seed(0)
    _, vectors = clusters(4, each=50)
    quantizer = make(size=16, vectors_per_step=200, quantizer="simvq")
    quantizer.start(SpreadRows(vectors))
    turned = vectors.roll(1, dims=1)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        _, _, loss = quantizer(turned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    basis = quantizer.state_dict()["basis"]
    assert (basis @ vectors.t()).max(dim=1).values.min() > 0.95  # the basis itself is frozen


def test_fsq_quantizes_as_the_deployed_codebook_does_and_passes_gradients() -> None:
    torch.manual_seed(0)
    config = TrainConfig(quantizer="fsq")
    levels = (5, 4, 3)
    quantizer = Quantizer(config, codebook_size=60, code_dim=3, vectors_per_step=100, levels=levels)
    codebook = Codebook(codebook_size=60, code_dim=3, rule="fsq", levels=levels)
    assert not quantizer.learns
    vectors = torch.randn(200, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized, codes, loss = quantizer(vectors)
    assert torch.equal(codes, codebook(vectors.detach()))
    assert torch.equal(quantized.detach(), codebook.lookup(codes))
    assert torch.equal(quantized, quantizer.lookup(vectors[None])[0])
    assert float(loss) == 0.0
    (grad,) = torch.autograd.grad(quantized.sum(), vectors)
    (expected,) = torch.autograd.grad(codebook.unquantized(vectors).sum(), vectors)
    torch.testing.assert_close(grad, expected)
