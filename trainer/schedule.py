"""The learning rate: linear warm-up, then half a cosine down to a share of the peak.

A pure function of the optimizer step, so that a checkpoint has nothing to store.
"""

import math


def learning_rate(
    step: int, *, peak: float, num_steps: int, warmup_steps: int, final_share: float
) -> float:
    """The rate of optimizer step `step`, counted from 0.

    Args:
        step: steps taken so far; past `num_steps` the rate stays at its end.
        peak: the rate at the end of the warm-up.
        num_steps: where the cosine ends.
        warmup_steps: the first step has peak / warmup_steps, not 0, so that no step is wasted.
        final_share: of the peak, reached at `num_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step >= num_steps:
        return peak * final_share
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return peak * (final_share + (1 - final_share) * cosine)
