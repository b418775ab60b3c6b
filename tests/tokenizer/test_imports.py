"""What a machine that only reads or only encodes has to have installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after some code."""
    command = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {*done.stdout.split()}


def test_the_package_needs_no_ray_and_no_heavy_library_to_import() -> None:
    names = sorted(
        path.stem for path in (ROOT / "tokenizer").glob("*.py") if path.stem != "__init__"
    )
    code = "\n".join(f"import tokenizer.{name}" for name in names)
    loaded = loaded_after(code)
    assert "torch" in loaded
    heavy = {"ray", "polars", "open_clip", "timm", "vector_quantize_pytorch", "tokenizers"}
    assert not loaded & heavy
    assert not loaded & {"PIL", "tensorboard", "torchvision", "pipeline", "trainer", "jobs"}


@pytest.mark.parametrize("name", ["config", "artifact", "text", "content"])
def test_what_a_plan_reads_needs_no_torch(name: str) -> None:
    assert "torch" not in loaded_after(f"import tokenizer.{name}")
