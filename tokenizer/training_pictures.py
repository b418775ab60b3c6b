"""Pictures of a training on its way: original, kept patches, and what the codes draw.

A sheet of the same few images at every stage, as a JPEG file, and a page that shows all sheets,
newest first; TensorBoard gets them too. Eight strips take 140 KB, and a fifteenth of the time of a
training step.

B images.
"""

import html
from pathlib import Path

import numpy as np
import torch

from schemas.storage import storage_errors
from tokenizer.config import DecisionConfig
from tokenizer.decision import decide
from tokenizer.features import spread_indices
from tokenizer.metrics import MetricsLog
from tokenizer.training_run import TrainingRun

PAGE, SHEETS = "pictures.html", "pictures"
_NUM_IMAGES = 8
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;"
    "color:#1c1e21;background:#fff}h2{font-size:1rem;margin:2rem 0 .5rem}img{max-width:100%}"
)


class TrainingPictures:
    """The picture page of one training."""

    def __init__(self, folder: Path, *, start_step: int = 0) -> None:
        """Sheets after `start_step`, of an attempt that was killed, are deleted: they come again.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.folder = folder
        with storage_errors("write", str(folder)):
            (folder / SHEETS).mkdir(parents=True, exist_ok=True)
            for path in (folder / SHEETS).glob("step-*.jpg"):
                if int(path.stem.removeprefix("step-")) > start_step:
                    path.unlink()

    @torch.no_grad()
    def write(
        self, run: TrainingRun, log: MetricsLog, *, decision: DecisionConfig, step: int
    ) -> None:
        """Draws a sheet under a rule, with the codebook as it is now. On one rank.

        Raises:
            StorageError: it cannot be written.
        """
        from PIL import Image

        from tokenizer.pictures import CodeDrawer, sheet, to_rgb

        source, model = run.source, run.model
        shown = source.held_out if len(source.held_out) else source.training
        indices = shown[spread_indices(len(shown), limit=_NUM_IMAGES)]
        originals = to_rgb(source.pixels(indices), source.encoder.preprocess)
        features = model.standardize(source(indices))
        mask = decide(model.keep_logits(features), config=decision)
        drawn = None
        if run.has_codebook and model.pixels is not None:
            run.publish_codebook()
            codes = model.codebook(run.kept_vectors(features, mask)).cpu().numpy()
            drawer = CodeDrawer(model, source.encoder.preprocess)
            drawn = drawer.draw(mask.cpu().numpy(), codes)
        pixels = sheet(originals, mask.cpu().numpy(), drawn)
        log.picture(step, np.ascontiguousarray(pixels))
        with storage_errors("write", str(self.folder)):
            Image.fromarray(pixels).save(
                self.folder / SHEETS / f"step-{step:08d}.jpg", quality=90, subsampling=0
            )
            self._write_page()

    def _write_page(self) -> None:
        parts = [
            f"<h2>step {int(path.stem.removeprefix('step-')):,}</h2>"
            f'<img src="{SHEETS}/{html.escape(path.name)}" alt="sheet of {path.stem}">'
            for path in sorted((self.folder / SHEETS).glob("step-*.jpg"), reverse=True)
        ]
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>pictures</title>'
            f"<style>{_STYLE}</style><h1>What the codes see</h1><p>Original, kept patches and, "
            "where the tokenizer has a pixel decoder and its codebook has started, what the codes "
            f"draw.</p>{''.join(parts)}</html>\n"
        )
        temporary = self.folder / f".tmp-{PAGE}"
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(self.folder / PAGE)
