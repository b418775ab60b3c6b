"""Pictures that the demo's model draws from captions of scenes which nothing has seen.

Each stands beside the scene and beside what the tokenizer draws from the scene's own codes: the
latter is the best that a model could have written. A picture takes a third of a second.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.demo.scenes import Scene
from jobs.report.data import DrawnCaption
from schemas.record import normalise_caption
from schemas.sentence import Ragged, read_sentences
from tokenizer.pictures import CodeDrawer
from tokenizer.text import JsonTextTokenizer
from tokenizer.tokenize import DynamicTokenizer
from trainer.checkpoint import load_model
from trainer.sampling import SamplingConfig, write_image

TEMPERATURE, TOP_P = 0.7, 0.9
"""Less than even odds: a wild word in a short training's model spoils the whole picture."""


def draw_captions(
    run: Path, tokenizer: Path, text_tokenizer: Path, scenes: Sequence[Scene]
) -> list[DrawnCaption]:
    """A picture for the caption of each scene, as `pixelese sample --caption` draws it.

    Raises:
        ArtifactError: the tokenizer has no pixel decoder.
        CheckpointError: the model was never shown an image after a text.
    """
    trained = load_model(str(run))
    loaded = DynamicTokenizer.load(str(tokenizer))
    drawer = CodeDrawer.load(str(tokenizer), fingerprint=trained.info.image_tokenizer)
    text = JsonTextTokenizer.load(str(text_tokenizer))
    captions = text.encode([normalise_caption(scene.caption) for scene in scenes])
    sentences = [
        write_image(
            trained.model,
            trained.vocabulary,
            captions[row].tolist(),
            image_first=trained.info.image_first,
            places=trained.info.places,
            bos=trained.info.bos,
            sampling=SamplingConfig(temperature=TEMPERATURE, top_p=TOP_P, seed=0),
        )
        for row in range(len(captions))
    ]
    lengths = [len(words) for words in sentences]
    written = Ragged(np.concatenate(sentences), np.concatenate([[0], np.cumsum(lengths)]))
    from_captions = drawer.draw(
        *read_sentences(written, num_patches=loaded.grid**2, codebook_size=loaded.codebook_size)
    )
    from_codes = drawer.draw(*loaded.encode_codes([scene.jpeg() for scene in scenes]))
    return [
        DrawnCaption(caption=scene.caption, image=scene.jpeg(), from_codes=own, from_caption=drawn)
        for scene, own, drawn in zip(scenes, from_codes, from_captions, strict=True)
    ]
