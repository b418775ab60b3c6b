"""Small trained tokenizers for the tests of the whole way."""

from pathlib import Path

from tests.tokenizer.conftest import single_thread, write_clip_folder
from tokenizer.config import EncoderConfig, HeadConfig, TokenizerConfig, TrainConfig
from tokenizer.training import train


def train_tiny(
    output: Path, images: list[bytes], *, encoder: Path, seed: int, pixel_width: int = 0
) -> None:
    """Trains a tokenizer of 64 patches and 48 codes for 30 steps on a random encoder."""
    if not encoder.exists():
        write_clip_folder(encoder)
    config = TokenizerConfig(
        encoder=EncoderConfig(model=f"local-dir:{encoder}"),
        head=HeadConfig(
            num_heads=2,
            mlp_width=64,
            merger_blocks=1,
            decoder_blocks=1,
            codebook_size=48,
            code_dim=8,
            pixel_width=pixel_width,
        ),
    )
    recipe = TrainConfig(
        feature_steps=8,
        joint_steps=12,
        deployed_steps=10,
        batch_size=16,
        warmup_steps=4,
        learning_rate=2e-3,
        seed=seed,
    )
    with single_thread():
        train(images, config=config, train=recipe, output=str(output))
