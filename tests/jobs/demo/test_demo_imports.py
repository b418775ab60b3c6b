"""The demo's world is light: scenes, list and server need neither torch nor Ray."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_scenes_and_server_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, jobs.demo, jobs.demo.scenes, jobs.demo.scene_list, jobs.demo.server, "
        "jobs.report.page\n"
        "heavy = {'torch', 'ray', 'polars', 'open_clip', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
