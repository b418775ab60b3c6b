"""`pixelese sample`: a caption for an image, or an image sentence for a caption."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from schemas.declaration import Declaration
    from trainer.checkpoint import TrainedModel


def sample(
    checkpoint: str = typer.Argument(help="A training run's folder, or one step-N folder in it."),
    image: Path | None = typer.Option(None, help="Write a caption for this image."),
    caption: str | None = typer.Option(None, help="Write an image sentence for this caption."),
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
    """Write a caption for an image, or an image sentence for a caption."""
    from schemas.errors import DeclarationError
    from trainer.checkpoint import load_model
    from trainer.sampling import SamplingConfig

    if (image is None) == (caption is None):
        raise DeclarationError("give exactly one of --image and --caption")
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
        _write_image(trained, str(caption), urls, sampling, guidance)


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
) -> None:
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
