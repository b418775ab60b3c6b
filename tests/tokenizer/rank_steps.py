"""One rank of a small training that tells what it holds after every step.

    python -m tests.tokenizer.rank_steps CLIP FOLDER

Rank and size come from the environment, as torchrun sets it; alone it is the whole training.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist

from tests.tokenizer.conftest import draw_image
from tokenizer.config import DecisionConfig, EncoderConfig, HeadConfig, TrainConfig
from tokenizer.encoder import Encoder
from tokenizer.features import FeatureSource, shuffled_batches
from tokenizer.model import TokenizerModel
from tokenizer.ranks import Ranks
from tokenizer.training_run import TrainingRun
from tokenizer.validation import validate

HEAD = HeadConfig(
    num_heads=2, mlp_width=64, merger_blocks=1, decoder_blocks=1, codebook_size=48, code_dim=8
)
CONFIG = TrainConfig(
    feature_steps=3,
    joint_steps=4,
    deployed_steps=3,
    batch_size=15,  # ranks have 8 and 7
    warmup_steps=1,
    learning_rate=1e-3,
    dead_code_share=0.7,
    validate_every_steps=5,
    validation_share=0.2,
    log_every_steps=4,
)
ARMS = {
    "ema": CONFIG,
    "gumbel-simvq": replace(CONFIG, objective="gumbel", quantizer="simvq"),
    "few-vectors": replace(CONFIG, kmeans_vectors=300, cache_bytes=0),
}
NUM_IMAGES = 47


def main(clip: str, folder: Path) -> None:
    """Trains every arm."""
    torch.set_num_threads(1)
    ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if ranks.size > 1:
        dist.init_process_group(
            "gloo", init_method=os.environ["MEETING"], rank=ranks.rank, world_size=ranks.size
        )
    encoder = Encoder.load(EncoderConfig(model=f"local-dir:{clip}"))
    for name, config in ARMS.items():
        take_steps(encoder, config, folder / name, ranks)
    if ranks.size > 1:
        dist.destroy_process_group()
        os._exit(0)  # as tokenizer/__main__.py does, and for its reason


def take_steps(encoder: Encoder, config: TrainConfig, output: Path, ranks: Ranks) -> None:
    """Takes all steps, and writes digests, figures and tensors."""
    torch.manual_seed(0)
    source = FeatureSource(
        [draw_image(seed) for seed in range(NUM_IMAGES)],
        encoder,
        batch_size=config.batch_size,
        cache_bytes=config.cache_bytes,
        statistics_images=20,
        device="cpu",
        validation_share=config.validation_share,
        ranks=ranks,
    )
    model = TokenizerModel(
        HEAD, encoder_width=encoder.spec.width, grid=encoder.spec.grid, image_size=32
    )
    model.mean.copy_(source.mean)
    model.deviation.copy_(source.deviation)
    run = TrainingRun(model, source, config=config, decision=DecisionConfig(), ranks=ranks)
    batches = shuffled_batches(len(source), batch_size=config.batch_size, seed=0)
    told = []
    for batch in islice(batches, run.num_steps):
        figures = run.step(source.training[batch])
        told.append({"digest": _digest(run), **figures, **run.usage.report(step=run.steps_done)})
    told.append({"digest": _digest(run), **validate(run)})
    Path(f"{output}-{ranks.rank}.json").write_text(json.dumps(told))
    if ranks.is_first:
        tensors = {**run.model.state_dict(), **run.quantizer.state_dict()}
        copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, f"{output}.safetensors")


def _digest(run: TrainingRun) -> str:
    """Of all that ranks must agree on: weights, codebook, moments, quantile, generator."""
    found = hashlib.sha256()
    for part in (run.model, run.quantizer):
        for name, tensor in part.state_dict().items():
            found.update(name.encode() + tensor.numpy().tobytes())
    for state in run.optimizer.state_dict()["state"].values():
        for tensor in state.values():
            found.update(tensor.numpy().tobytes())
    found.update(repr((run.length.state_dict(), run.decision)).encode())
    found.update(torch.get_rng_state().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
