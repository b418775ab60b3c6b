"""The rules of the house: who imports whom, what runs without what, and what no file may say.

Imports are checked in fresh interpreters, because pytest's own has imported nearly everything.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "tokenizer", "pipeline", "trainer", "jobs")

BLOCK = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

blocked = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Block())
"""

IMPORT = """
import importlib, sys
for name in sys.argv[2].split(","):
    importlib.import_module(name)
found = {name.partition(".")[0] for name in sys.modules}
print(",".join(sorted(found & set(sys.argv[1].split(",")))))
"""

HELP = """
import sys
from jobs.cli import main
names = sys.argv[1].split(",")
sys.argv = ["pixelese", "--help"]
try:
    main()
finally:
    found = {name.partition(".")[0] for name in sys.modules}
    print(",".join(sorted(found & set(names))), file=sys.stderr)
"""


def modules(package: str) -> list[str]:
    """The names of all modules of a package, less those that run something when imported."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def run(script: str, *arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh interpreter, with lists of names as arguments."""
    joined = [",".join(names) for names in arguments]
    done = subprocess.run(
        [sys.executable, "-c", script, *joined],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_what_is_stored_needs_neither_torch_nor_ray_nor_polars() -> None:
    heavy = ["torch", "ray", "polars", "open_clip", "transformers", "PIL"]
    assert run(IMPORT, heavy, modules("schemas")).stdout.strip() == ""


@pytest.mark.parametrize("package", ["tokenizer", "trainer"])
def test_training_imports_nothing_of_ingestion(package: str) -> None:
    names = modules(package)
    assert len(names) > 3
    strangers = ["ray", "polars", "pydantic", "img2dataset", "webdataset", "jobs", "pipeline"]
    assert run(IMPORT, strangers, names).stdout.strip() == ""


@pytest.mark.parametrize("package", ["tokenizer", "trainer"])
def test_training_runs_where_little_is_installed(package: str) -> None:
    """torch, numpy, pyarrow, fsspec and safetensors are enough to import every module."""
    missing = [
        "PIL",
        "img2dataset",
        "open_clip",
        "polars",
        "pydantic",
        "ray",
        "rich",
        "tensorboard",
        "timm",
        "tokenizers",
        "torchvision",
        "transformers",
        "typer",
        "vector_quantize_pytorch",
        "webdataset",
        "yaml",
    ]
    assert run(BLOCK + IMPORT, missing, modules(package)).stdout.strip() == ""


def test_the_pipeline_runs_without_ray() -> None:
    assert run(IMPORT, ["ray"], modules("pipeline")).stdout.strip() == ""


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "ray", "open_clip", "polars", "transformers", "timm", "img2dataset"]
    done = run(HELP, heavy)
    assert "plan" in done.stdout
    assert done.stderr.strip() == ""


def text_files() -> list[Path]:
    """Every file of the repository that a person wrote."""
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".html", ".sh", ""}
    skipped = {".venv", ".git", "build", "demo", "__pycache__"}
    found = []
    for folder, folders, names in os.walk(ROOT):
        top = Path(folder) == ROOT
        folders[:] = [name for name in folders if name not in skipped or not top]
        folders[:] = [name for name in folders if not name.endswith(("_cache", ".egg-info"))]
        folders[:] = [name for name in folders if name not in {"__pycache__", ".hypothesis"}]
        found += [Path(folder, name) for name in names if Path(name).suffix in suffixes]
    return sorted(found)


# Spelled in pieces, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a package registry's host": r"\b(?:{})\b".format(
        "|".join(
            re.escape(name + end)
            for name, end in [
                ("pypi", ".org"),
                ("pythonhosted", ".org"),
                ("anaconda", ".org"),
                ("npmjs", ".com"),
                ("crates", ".io"),
                ("download.pytorch", ".org"),
            ]
        )
    ),
    "an absolute home path": r"(?<![\w.])/(?:home|Users|root)/[\w.-]+/",
}


@pytest.mark.parametrize("what", list(FORBIDDEN))
def test_no_file_names(what: str) -> None:
    files = text_files()
    assert Path(__file__).resolve() in {path.resolve() for path in files}
    pattern = re.compile(FORBIDDEN[what])
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert hits == []


def test_commits_are_checked_as_make_checks() -> None:
    """pre-commit and `make check` run the same commands."""
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [hook["entry"] for hook in config["repos"][0]["hooks"]] == wanted


def test_every_package_has_its_tests() -> None:
    """Tests mirror the tree."""
    assert [name for name in PACKAGES if not list((ROOT / "tests" / name).rglob("test_*.py"))] == []
