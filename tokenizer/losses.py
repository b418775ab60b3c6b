"""What training minimises: reconstruction, commitment, and what gives the selector a reason.

B images, N patches an image, D width, T kept patches of the batch, c code dimension.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor


def patch_errors(rebuilt: Tensor, features: Tensor) -> Tensor:
    """1 - cosine of every patch, on standardised features: 0 (same direction) to 2.

    Args:
        rebuilt: (B, N, D).
        features: (B, N, D).

    Returns:
        (B, N) float32.
    """
    return 1.0 - functional.cosine_similarity(rebuilt.float(), features.float(), dim=-1)


def commitment_loss(vectors: Tensor, codes: Tensor) -> Tensor:
    """Mean 1 - cosine between (T, c) unit vectors and their codes, which get no gradient."""
    return 1.0 - (vectors * codes.detach()).sum(dim=-1).mean()


def ratio_loss(mean_keep: Tensor, *, keep_share: float) -> Tensor:
    """(rho - batch mean keep)^2 of the mean of a straight-through mask.

    Over the batch and never per image: per image it would push every image to the same length.
    LaVIT, arXiv 2309.04669, equation 4.
    """
    return (keep_share - mean_keep).square()


def error_regression_loss(scores: Tensor, targets: Tensor, *, dropped: Tensor) -> Tensor:
    """Mean squared error of (B, N) scores on the dropped patches; 0 if nothing was dropped.

    Kept patches say nothing about what dropping them costs, so they are left out.
    """
    errors = (scores - targets.detach()).square()[dropped]
    return errors.mean() if errors.numel() else scores.sum() * torch.zeros(())
