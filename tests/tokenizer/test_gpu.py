"""On a GPU: the codes of a CPU but for rounding, and an image's words are its own there too."""

import numpy as np
import pytest
import torch

from tokenizer.config import PreprocessConfig
from tokenizer.preprocess import decode_images, normalize_on_device, normalize_pixels
from tokenizer.tokenize import DynamicTokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def on_cpu(artifact: str) -> DynamicTokenizer:
    return DynamicTokenizer.load(artifact, batch_size=16)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def on_gpu(artifact: str, request: pytest.FixtureRequest) -> DynamicTokenizer:
    return DynamicTokenizer.load(artifact, batch_size=16, device="cuda", precision=request.param)


def dense_codes(tokenizer: DynamicTokenizer, images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Keep masks (B, N), and codes (B, N) with -1 where a patch is dropped."""
    mask, codes = tokenizer.encode_codes(images)
    dense = np.full(mask.shape, -1)
    dense[mask] = codes
    return mask, dense


def test_pixels_are_bit_equal_on_both(images: list[bytes]) -> None:
    pixels = decode_images(images[:5], image_size=48)
    config = PreprocessConfig(image_size=48)
    expected = normalize_pixels(pixels, config=config)
    found = normalize_on_device(pixels, config=config, device=torch.device("cuda"))
    assert found.is_contiguous()
    assert torch.equal(found.cpu(), expected)


def test_codes_agree_with_the_cpu(
    on_cpu: DynamicTokenizer, on_gpu: DynamicTokenizer, images: list[bytes]
) -> None:
    (mask, codes), (expected_mask, expected) = (
        dense_codes(tokenizer, images) for tokenizer in (on_gpu, on_cpu)
    )
    both = mask & expected_mask
    masks_agree = float((mask == expected_mask).mean())
    codes_agree = float((codes == expected)[both].mean())
    precision = on_gpu.execution.precision
    print(f"{precision}: {masks_agree:.4%} of keep decisions, {codes_agree:.4%} of codes")
    assert 0.05 < mask.mean() < 0.95
    limits = {"float32": (0.999, 0.99), "bfloat16": (0.95, 0.80)}[precision]
    assert masks_agree > limits[0]
    assert codes_agree > limits[1]


def test_words_are_independent_of_neighbours(on_gpu: DynamicTokenizer, images: list[bytes]) -> None:
    sentences = on_gpu.encode(images)
    assert len({*np.diff(sentences.offsets).tolist()}) > 8
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    for chosen in (order, order[:1], order[1:18], order[::-1][:40], [7] * 3):
        found = on_gpu.encode([images[index] for index in chosen])
        for row, index in enumerate(chosen):
            assert np.array_equal(found[row], sentences[index])


def test_code_vectors_are_bit_equal_whatever_the_neighbours(
    on_gpu: DynamicTokenizer, images: list[bytes]
) -> None:
    """Codes hide small differences; features and logits show all of them."""
    seen = []
    for neighbours in (images[1:16], images[50:65], []):
        with on_gpu.fixed_environment():
            ((_, features),) = on_gpu.features([images[0], *neighbours])
            seen.append((features[0], on_gpu.model.keep_logits(features)[0]))
    for features, logits in seen[1:]:
        assert torch.equal(features, seen[0][0])
        assert torch.equal(logits, seen[0][1])


def test_other_settings_of_float32_products_change_nothing(
    artifact: str, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard must not depend on what a program did to torch's defaults."""
    tokenizer = DynamicTokenizer.load(artifact, batch_size=16, device="cuda")
    expected = tokenizer.encode(images[:20])
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    features = torch.randn(512, 512, device="cuda")
    assert not torch.equal((features @ features).cpu(), features.cpu() @ features.cpu())
    found = tokenizer.encode(images[:20])
    assert np.array_equal(found.values, expected.values)
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
