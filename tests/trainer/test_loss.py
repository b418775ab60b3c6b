"""The loss equals torch's own, gradients included, and counts labels to the right modality."""

import pytest
import torch
from torch.nn import functional

from schemas.vocabulary import Vocabulary
from trainer import loss as loss_module
from trainer.loss import IGNORED, MODALITIES, label_modalities, linear_cross_entropy

VOCABULARY = Vocabulary(num_text_ids=10, num_places=4, codebook_size=6)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("num_rows", [1, 64, 200])
def test_value_and_gradients_are_those_of_cross_entropy(
    z_loss: float, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss_module._CHUNK_ELEMENTS, "cpu", 64 * 31)  # chunks of 64 rows
    torch.manual_seed(0)
    hidden = torch.randn(num_rows, 12, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(31, 12).requires_grad_()
    labels = torch.randint(31, (num_rows,))
    labels[num_rows // 2] = IGNORED
    total, nll = linear_cross_entropy(hidden, weight, labels, scale=0.25, z_loss=z_loss)
    torch.autograd.backward(3 * total)
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    expected_nll = functional.cross_entropy(logits, labels, reduction="none")
    squares = logits.logsumexp(-1).square() * (labels != IGNORED)
    expected = 0.25 * (expected_nll + z_loss * squares).sum()
    torch.autograd.backward(3 * expected)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, expected_nll)
    assert nll[num_rows // 2] == 0
    for ours, theirs in zip(found, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_bfloat16_products_come_close_and_gradients_stay_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 32).requires_grad_(), torch.randn(90, 32).requires_grad_()
    labels = torch.randint(90, (50,))
    exact, _ = linear_cross_entropy(hidden, weight, labels, scale=1 / 50)
    rounded, _ = linear_cross_entropy(hidden, weight, labels, scale=1 / 50, dtype=torch.bfloat16)
    torch.autograd.backward(rounded)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
    assert rounded.item() != exact.item()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_labels_count_to_what_the_model_has_seen_of_the_document() -> None:
    v = VOCABULARY
    code, other = v.code_offset + 1, v.image_offset + 2
    documents = [
        [v.bos, v.image_start, other, code, v.image_end, 3, 4, v.eos],
        [v.bos, 5, v.image_start, code, v.image_end, v.eos],
        [v.bos, 6, 7, v.eos],
    ]
    ids = torch.tensor([[token for document in documents for token in document]])
    names = torch.tensor([[n for n, document in enumerate(documents) for _ in document]])
    labels = torch.cat([ids[:, 1:], torch.tensor([[v.eos]])], dim=1)
    labels[:, 7] = labels[:, 13] = labels[:, 17] = IGNORED
    found = label_modalities(ids, labels, names, v)[0]
    read = [
        MODALITIES[m]
        for m, label in zip(found.tolist(), labels[0].tolist(), strict=True)
        if label != IGNORED
    ]
    assert read == [
        *("special", "image_alone", "image_alone", "special"),
        *("text_given_image", "text_given_image", "special"),
        *("text_alone", "special", "image_given_text", "special", "special"),
        *("text_alone", "text_alone", "special"),
    ]


def test_a_row_that_begins_inside_a_document_shows_nothing_of_its_past() -> None:
    v = VOCABULARY
    ids = torch.tensor([[v.image_end, 3, 4]])  # the words were in the row before
    labels = torch.tensor([[3, 4, v.eos]])
    found = label_modalities(ids, labels, torch.zeros(1, 3, dtype=torch.int32), v)
    assert [MODALITIES[m] for m in found[0].tolist()] == ["text_alone", "text_alone", "special"]
