"""How a tokenizer in training does on images that it does not learn from.

Under the rule that would be deployed now, calibrated on training images and read by the codebook as
it would be deployed: what training reports is neither. Nothing is drawn at random and nothing
learns, so a training is the same with and without it. An image costs half of what it costs in
a step.

N patches an image.
"""

import torch

from tokenizer.decision import decide
from tokenizer.losses import patch_errors
from tokenizer.merger import Rows
from tokenizer.metrics import usage_of
from tokenizer.training_run import TrainingRun


@torch.no_grad()
def validate(run: TrainingRun) -> dict[str, float]:
    """Figures on the held-out images. To be called on all ranks.

    Returns:
        `cosine`, `cosine_kept`, `cosine_dropped` (0 where nothing was dropped), `keep_share`,
        `num_images` and, once there is a codebook, `codebook_usage` and `codebook_perplexity`.
    """
    decision = run.calibrated()
    run.publish_codebook()
    sums = torch.zeros(4, dtype=torch.float64)  # errors, errors of kept, kept, patches
    counts = torch.zeros(run.model.config.codebook_size, dtype=torch.int64)
    for part, _ in run.source.parts(run.source.held_out):
        if not len(part):
            continue
        features = run.model.standardize(part)
        mask = decide(run.model.keep_logits(features), config=decision)
        rows = Rows.tight(mask)
        vectors = run.model.compress(features, rows)
        if run.has_codebook:
            codes = run.model.codebook(vectors)
            counts += torch.bincount(codes[rows.kept_valid].cpu(), minlength=len(counts))
            vectors = run.model.codebook.lookup(codes)
        else:
            vectors = run.model.codebook.unquantized(vectors)
        rebuilt = run.model.reconstruct(vectors, places=rows.kept, valid=rows.kept_valid)
        errors, kept = patch_errors(rebuilt, features).double(), mask.double()
        found = (errors.sum(), (errors * kept).sum(), kept.sum(), torch.ones_like(kept).sum())
        sums += torch.stack(found).cpu()
    error, error_kept, num_kept, count = run.ranks.sum_(sums).tolist()
    figures = {
        "cosine": 1.0 - error / count,
        "cosine_kept": 1.0 - error_kept / num_kept,
        "cosine_dropped": 1.0 - (error - error_kept) / max(1.0, count - num_kept),
        "keep_share": num_kept / count,
        "num_images": count / run.model.num_patches,
    }
    return figures | (usage_of(run.ranks.sum_(counts)) if run.has_codebook else {})
