"""Regrouping by document loses, doubles and mixes nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.grouping import group_documents


@st.composite
def packed_rows(draw: st.DrawFn) -> torch.Tensor:
    """(B, L) document ids; equal ids may meet again in another row."""
    length = draw(st.integers(1, 90))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        starts = draw(st.lists(st.integers(0, length - 1), max_size=6))
        is_start = torch.zeros(length, dtype=torch.int32)
        is_start[starts] = 1
        rows.append(is_start.cumsum(0).int())
    return torch.stack(rows)


@given(packed_rows())
def test_every_token_has_one_cell_in_its_documents_own_row(documents: torch.Tensor) -> None:
    groups = group_documents(documents)
    num_rows, length = documents.shape
    names = documents.long() + 1000 * torch.arange(num_rows)[:, None]
    tokens = torch.arange(num_rows * length)
    assert torch.equal(groups.scatter(groups.gather(tokens)), tokens)
    own = groups.token_of_cell[groups.cell_of_token]
    assert torch.equal(own, tokens)
    assert len(groups.padding) + len(tokens) == len(groups.token_of_cell)
    start = 0
    seen: list[int] = []
    for num_documents, longest in groups.shapes:
        end = start + num_documents * longest
        cells = names.flatten()[groups.token_of_cell[start:end]].view(num_documents, longest)
        assert bool((cells == cells[:, :1]).all()), "a row holds one document"
        seen += cells[:, 0].tolist()
        start = end
    assert start == len(groups.token_of_cell)
    assert sorted(seen) == sorted(set(names.flatten().tolist()))


def test_padding_sends_no_gradient_back() -> None:
    documents = torch.tensor([[0] * 3 + [1] * 9])
    groups = group_documents(documents)
    assert len(groups.padding) == 6, "the short document is padded to the long one"
    cells = torch.randn(len(groups.token_of_cell), 4, requires_grad=True)
    torch.autograd.backward((groups.scatter(cells) ** 2).sum())
    assert cells.grad is not None
    assert not cells.grad[groups.padding].any()
    assert bool(cells.grad[groups.cell_of_token].all())
