"""`pixelese sample`: a caption for an image, or an image sentence and its picture for a caption."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from schemas.declaration import Declaration
    from tokenizer.pictures import CodeDrawer
    from trainer.checkpoint import TrainedModel

PICTURE_SIDE = 256
"""Pixels a side of a written picture, at least: those of small encoders are enlarged."""


def sample(
    checkpoint: str = typer.Argument(help="A training run's folder, or one step-N folder in it."),
    image: Path | None = typer.Option(None, help="Write a caption for this image."),
    caption: str | None = typer.Option(
        None, help="Write an image sentence for this caption, and draw it."
    ),
    output: Path | None = typer.Option(
        None, help="PNG for the picture of --caption; default beside the checkpoint."
    ),
    tokenizer: str | None = typer.Option(
        None, help="The visual tokenizer's artifact; default the one of the corpus' version."
    ),
    text_tokenizer: str | None = typer.Option(
        None, help="The text tokenizer; default the one of the corpus' version."
    ),
    temperature: float | None = typer.Option(
        None, min=0.0, help="Default 0 (the likeliest) for captions, 1 for images."
    ),
    top_k: int = typer.Option(0, min=0, help="Only the likeliest so many; 0 means all."),
    top_p: float = typer.Option(1.0, min=0.01, max=1.0, help="Only the likeliest share."),
    guidance: float = typer.Option(0.0, min=0.0, help="Classifier-free guidance for images."),
    seed: int = typer.Option(0, help="Draws another sample."),
) -> None:
    """Write a caption for an image, or an image sentence and a picture for a caption."""
    from schemas.errors import ArtifactError, DeclarationError
    from trainer.checkpoint import load_model
    from trainer.sampling import SamplingConfig

    if (image is None) == (caption is None):
        raise DeclarationError("give exactly one of --image and --caption")
    if image is not None and output is not None:
        raise DeclarationError("--output goes with --caption: a caption is printed")
    trained = load_model(checkpoint)
    declaration, urls = _tokenizer_urls(trained)
    urls = (tokenizer or urls[0], text_tokenizer or urls[1])
    given = 0.0 if image is not None else 1.0
    sampling = SamplingConfig(
        temperature=given if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    if image is not None:
        print(_caption(trained, image, declaration, urls, sampling))
    else:
        words = _write_image(trained, str(caption), urls, sampling, guidance)
        path = output or _default_output(checkpoint, str(caption), seed)
        why_not = _draw(trained, words, urls[0], path)
        if why_not and output is not None:
            raise ArtifactError(f"{output} is not written: {why_not}")
        typer.echo(f"no picture: {why_not}" if why_not else f"wrote {path}", err=True)


def _caption(
    trained: "TrainedModel",
    path: Path,
    declaration: "Declaration",
    urls: tuple[str | None, str | None],
    sampling: Any,
) -> str:
    from pipeline.images import Rejected, prepare_image
    from schemas.errors import SourceError
    from schemas.storage import storage_errors
    from trainer.sampling import caption

    with storage_errors("read", str(path)):
        data = path.read_bytes()
    prepared = prepare_image(data, declaration.images)
    if isinstance(prepared, Rejected):
        raise SourceError(f"{path}: {prepared.state.value} ({prepared.reason})")
    words = _image_tokenizer(trained, urls[0]).encode([prepared.image])[0]
    ids = caption(
        trained.model,
        trained.vocabulary,
        words,
        places=trained.info.places,
        bos=trained.info.bos,
        sampling=sampling,
    )
    return str(_text_tokenizer(trained, urls[1]).decode(ids))


def _write_image(
    trained: "TrainedModel",
    text: str,
    urls: tuple[str | None, str | None],
    sampling: Any,
    guidance: float,
) -> "NDArray[np.integer]":
    """Prints an image sentence, and returns it."""
    from schemas.record import normalise_caption
    from schemas.sentence import count_words
    from trainer.sampling import write_image

    tokenizer = _text_tokenizer(trained, urls[1])
    words = write_image(
        trained.model,
        trained.vocabulary,
        [int(item) for item in tokenizer.encode([normalise_caption(text)])[0]],
        image_first=trained.info.image_first,
        places=trained.info.places,
        bos=trained.info.bos,
        sampling=sampling,
        guidance=guidance,
    )
    num_codes, num_places = count_words(words, num_patches=trained.vocabulary.num_places)
    print(" ".join(str(int(word)) for word in words))
    typer.echo(f"{num_codes} code words, {num_places} place words", err=True)
    return words


def _draw(
    trained: "TrainedModel", words: "NDArray[np.integer]", url: str | None, output: Path
) -> str:
    """Writes the picture of an image sentence; otherwise says why there is none."""
    from jobs.report.drawing import open_drawer

    if url is None:
        return "the corpus' version declares no tokenizer: give --tokenizer"
    drawing = open_drawer(url, fingerprint=trained.info.image_tokenizer)
    if drawing.drawer is None:
        return drawing.why_not
    if not trained.info.places and drawing.drawer.model.config.positions == "2d":
        return "this model writes no place words, so where its codes belong is unknown"
    _write_picture(drawing.drawer, words, output)
    return ""


def _write_picture(drawer: "CodeDrawer", words: "NDArray[np.integer]", output: Path) -> None:
    import numpy as np

    from schemas.sentence import Ragged, read_sentences
    from schemas.storage import storage_errors
    from tokenizer.pictures import enlarged

    keep_mask, codes = read_sentences(
        Ragged(words, np.array([0, len(words)])),
        num_patches=drawer.grid**2,
        codebook_size=drawer.model.config.codebook_size,
    )
    (pixels,) = drawer.draw(keep_mask, codes)
    with storage_errors("write", str(output)):
        enlarged(pixels, side=PICTURE_SIDE).save(output, "PNG")


def _default_output(checkpoint: str, text: str, seed: int) -> Path:
    """Beside the checkpoint, or here where that is no local folder; named by what is drawn."""
    told = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "picture"
    name = f"{told}.{seed}.png"
    folder = Path(checkpoint)
    return folder.parent / f"{folder.name}.{name}" if folder.is_dir() else Path(name)


def _tokenizer_urls(trained: "TrainedModel") -> tuple["Declaration", tuple[str | None, str | None]]:
    """The declaration of the version that the model was trained on, and its tokenizers."""
    from schemas.catalog import Catalog
    from schemas.declaration import parse_declaration, resolve
    from schemas.storage import Store

    store = Store(trained.info.corpus)
    version = Catalog(store).read(trained.info.version, kinds=[])
    declaration = parse_declaration(version.declaration)
    locations = declaration.tokenizer, declaration.text_tokenizer
    first, second = (None if item is None else resolve(item, store) for item in locations)
    return declaration, (first, second)


def _image_tokenizer(trained: "TrainedModel", url: str | None) -> Any:
    from tokenizer.artifact import read_fingerprint
    from tokenizer.tokenize import DynamicTokenizer

    trained.check_tokenizers(image=read_fingerprint(_given(url, "--tokenizer")), text=None)
    return DynamicTokenizer.load(_given(url, "--tokenizer"))


def _text_tokenizer(trained: "TrainedModel", url: str | None) -> Any:
    from tokenizer.text import JsonTextTokenizer

    tokenizer = JsonTextTokenizer.load(_given(url, "--text-tokenizer"))
    trained.check_tokenizers(image=None, text=tokenizer.fingerprint)
    return tokenizer


def _given(url: str | None, option: str) -> str:
    from schemas.errors import DeclarationError

    if url is None:
        raise DeclarationError(f"the corpus' version declares none: give {option}")
    return url
