"""Decodes an untrusted image and makes the JPEG that a pair shard stores.

Everything is decided as early as it can be: by the first bytes, then by the header, then by a full
strict decode in which a cut file is an error (a lenient decoder stores grey mud as a success). The
price of strictness is that a photograph with one lost byte at its end is refused. Orientation, ICC
profiles, 16 bits, palettes and alpha are resolved here once, so that nothing later needs to know
of them. A 300-pixel JPEG costs 0.57 ms of one core; JPEGs far larger than wanted are decoded at a
reduced scale, and beside the decoded picture only strips of it are ever copied.

It imports as little as it can: a process that does nothing else is ready in 0.1 s.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageFile

from pipeline.headers import claimed_size
from pipeline.sniff import NOT_IMAGES, SUPPORTED, sniff
from schemas.state import State

if TYPE_CHECKING:
    from schemas.declaration import Images

_ANIMATED_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_JPEGS = frozenset({"JPEG", "MPO"})
"""Formats that decode at a reduced scale; MPO is a JPEG with more of them behind it."""
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})
_REDUCING_GAP = 3
"""An image is box-reduced to at least this many times its final size before Lanczos: the result
differs by less than JPEG noise, and peak memory falls by the square."""
_STRIP_PIXELS = 1 << 20
_QUIET_BYTES = {"WEBP": 16, "AVIF": 16, "JPEG2000": 16, "JPEG": 8, "MPO": 8}
"""Bytes a pixel that decoders take at most which call a failed allocation a broken file."""

_PILLOW = threading.Lock()
"""Pillow's limits and Python's warning filters are global to the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """An image as it is stored."""

    image: bytes
    """JPEG, RGB, 4:2:0, without metadata."""
    width: int
    height: int
    original_width: int
    """As shown: an EXIF orientation is applied."""
    original_height: int
    original_format: str
    """Pillow's name: JPEG, PNG, ..."""
    original_mode: str
    """Pillow's name: RGB, CMYK, I;16, ..."""
    flags: tuple[str, ...]
    """Sorted: `alpha`, `animated`, `exif_broken`, `icc`, `icc_broken`, `oriented`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Why bytes are no usable image."""

    state: State
    reason: str
    original_width: int | None = None
    original_height: int | None = None
    original_format: str | None = None
    original_mode: str | None = None


Result = Prepared | Rejected


def prepare_image(data: bytes, settings: "Images") -> Result:
    """Makes the stored form of received bytes, or says why there is none.

    A pure function of its arguments and the decoder's version; never raises on hostile bytes. It
    bounds pixels; the bounds on memory and time are kept by the process around it
    (`pipeline.decoder`).

    Args:
        data: the whole body as it came.
        settings: sizes, quality and limits.
    """
    if not data:
        return Rejected(state=State.EMPTY, reason="empty")
    kind = sniff(data)
    if kind in NOT_IMAGES:
        return Rejected(state=State.NOT_IMAGE, reason=kind)
    if kind not in SUPPORTED:
        return Rejected(
            state=State.UNDECODABLE, reason="unsupported_format", original_format=kind.upper()
        )
    size = claimed_size(data, kind)
    if size is not None and size[0] * size[1] > settings.max_pixels:
        return _rejected(State.TOO_LARGE, "pixels", kind, size=size)
    with _careful_pillow(settings.max_pixels):
        try:
            return _prepare(data, kind, settings)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return _rejected(State.TOO_LARGE, "pixels", kind)
        # Fuzzed files make Pillow raise nearly any type (struct.error, SyntaxError, IndexError,
        # ZeroDivisionError, ...): whatever it is, this file is the cause, and its row says so.
        except Exception as error:
            if _is_out_of_memory(error) or _is_short(kind, size, settings.decode_bytes):
                return _rejected(State.TOO_LARGE, "memory", kind, size=size)
            return _rejected(State.UNDECODABLE, _decode_reason(error), kind)


def _rejected(
    state: State,
    reason: str,
    kind: str,
    *,
    size: tuple[int, int] | None = None,
    mode: str | None = None,
) -> Rejected:
    width, height = size or (None, None)
    return Rejected(
        state=state,
        reason=reason,
        original_width=width,
        original_height=height,
        original_format=kind,
        original_mode=mode,
    )


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed: some decoders raise another error on top."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_short(kind: str, size: tuple[int, int] | None, decode_bytes: int) -> bool:
    """Whether memory is what a decoder that failed lacked, by the size that the header claims."""
    return size is not None and size[0] * size[1] * _QUIET_BYTES.get(kind, 0) > decode_bytes


def _load(image: Image.Image, kind: str, size: tuple[int, int], decode_bytes: int) -> None:
    """Decodes. Raises MemoryError where another error hides one."""
    try:
        image.load()
    except Exception as error:
        # A JPEG is held whole only where it is progressive.
        is_whole = kind not in _JPEGS or "progressive" in image.info
        if is_whole and _is_short(kind, size, decode_bytes):
            raise MemoryError from error
        raise


def _prepare(data: bytes, kind: str, settings: "Images") -> Result:
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        # Before the header's size is trusted, it is judged; before pixels are decoded, too.
        rejected = _judge_header(image, settings)
        if rejected is not None:
            return rejected
        name, mode, size = image.format or kind, image.mode, image.size
        flags = {"animated"} if _is_animated(image) else set()
        if name in _JPEGS:
            image.draft(None, _at_least(size, settings.max_side))
        _load(image, name, size, settings.decode_bytes)
        # AVIF and TIFF apply a rotation while they load: only then is the tag what is left to do.
        if name not in _JPEGS:
            size = image.size
        orientation = _orientation(image, flags)
        picture = _resize(_to_srgb(image, size, settings.max_side, flags), size, settings.max_side)
    if orientation in _TRANSPOSE:
        flags.add("oriented")
        picture = picture.transpose(_TRANSPOSE[orientation])
    width, height = size[::-1] if orientation in _SIDEWAYS else size
    return Prepared(
        image=_encode(picture, settings.quality),
        width=picture.width,
        height=picture.height,
        original_width=width,
        original_height=height,
        original_format=name,
        original_mode=mode,
        flags=tuple(sorted(flags)),
    )


def _judge_header(image: Image.Image, settings: "Images") -> Rejected | None:
    width, height = image.size
    state, reason = State.OK, ""
    if width < 1 or height < 1:
        state, reason = State.UNDECODABLE, "corrupt"
    elif width * height > settings.max_pixels:
        state, reason = State.TOO_LARGE, "pixels"
    elif min(width, height) < settings.min_side:
        state, reason = State.TOO_SMALL, "side"
    elif max(width, height) > settings.max_aspect * min(width, height):
        state, reason = State.TOO_SMALL, "aspect"
    if state is State.OK:
        return None
    return _rejected(state, reason, str(image.format), size=image.size, mode=image.mode)


def _decode_reason(error: Exception) -> str:
    message = str(error).lower()
    cut = ("truncated", "unexpected end", "premature", "not enough", "incomplete", "broken data")
    return "truncated" if any(word in message for word in cut) else "corrupt"


def _is_animated(image: Image.Image) -> bool:
    """Whether there is more than one frame; only the first is ever decoded."""
    if image.format not in _ANIMATED_FORMATS:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except (OSError, EOFError, ValueError, SyntaxError):  # a later frame is broken
        return True


def _orientation(image: Image.Image, flags: set[str]) -> int:
    """The EXIF orientation, 1 where there is none or where EXIF cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    # Malformed EXIF raises as many types as malformed images; it is no reason to lose a picture.
    except Exception:
        flags.add("exif_broken")
        return 1


def _to_srgb(
    image: Image.Image, size: tuple[int, int], max_side: int, flags: set[str]
) -> Image.Image:
    """8-bit sRGB RGB over white, box-reduced if it is far larger than wanted."""
    profile = image.info.get("icc_profile")
    least = _at_least(size, max_side)
    plain = _reduce(image, min(image.width // least[0], image.height // least[1]))
    alpha = None
    if plain.mode in ("RGBA", "LA"):
        flags.add("alpha")
        alpha = plain.getchannel("A")
        plain = plain.convert("RGB" if plain.mode == "RGBA" else "L")
    picture = _apply_profile(plain, profile, flags)
    if alpha is not None:
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=alpha)
        picture = white
    return picture


def _reduce(image: Image.Image, factor: int) -> Image.Image:
    """One of the modes L, LA, RGB, RGBA and CMYK, box-reduced.

    In strips, because a conversion and the premultiplication by alpha each copy what they are
    given: four bytes a pixel, for pictures of up to a hundred million.
    """
    top, factor = _white(image), max(1, factor)
    if factor == 1 and not _is_deep(image):
        return _to_eight_bits(image, top)
    reduced: Image.Image | None = None
    for strip, start in _strips(image, factor):
        part = _to_eight_bits(strip, top).reduce(factor)
        if reduced is None:
            size = -(-image.width // factor), -(-image.height // factor)
            reduced = Image.new(part.mode, size)
        reduced.paste(part, (0, start // factor))
    assert reduced is not None
    return reduced


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[Image.Image, int]]:
    """The picture in strips of whole rows, each with its first row; their number of rows is a
    multiple, but for the last."""
    num_rows = multiple * max(1, _STRIP_PIXELS // (image.width * multiple))
    for start in range(0, image.height, num_rows):
        end = min(image.height, start + num_rows)
        yield image.crop((0, start, image.width, end)), start


def _is_deep(image: Image.Image) -> bool:
    """Grey with 16 or 32 bits, or float."""
    return image.mode.startswith(("I", "F"))


def _to_eight_bits(image: Image.Image, white: float) -> Image.Image:
    """One of the modes L, LA, RGB, RGBA and CMYK, with the same pixels."""
    if _is_deep(image):
        values = np.asarray(image).astype(np.float64)  # (height, width)
        scaled = np.rint(np.nan_to_num(values * (255.0 / white)))
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "CMYK"):
        return image
    if image.mode not in ("LAB", "YCbCr", "HSV") and image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _white(image: Image.Image) -> float:
    """The value of deep grey that becomes 255.

    65535 for 16 bits. Wider integers and floats say nowhere what white is: the smallest of 1, 255
    and 65535 that holds their values is taken, and above that their maximum.
    """
    if image.mode.startswith("I;16") or not _is_deep(image):
        return 65535.0
    top = max(_finite_maximum(np.asarray(strip)) for strip, _ in _strips(image))
    least = 255.0 if image.mode.startswith("I") else 1.0
    return next((white for white in (least, 255.0, 65535.0) if top <= white), top)


def _finite_maximum(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def _apply_profile(image: Image.Image, profile: bytes | None, flags: set[str]) -> Image.Image:
    """RGB in sRGB. A profile that is damaged, or made for other channels, is passed over."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[image.mode]
            if source.profile.xcolor_space.strip() != space:
                raise ImageCms.PyCMSError(f"a {source.profile.xcolor_space} profile on {space}")
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
            flags.add("icc_broken")
        else:
            flags.add("icc")
            if converted is not None:
                return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def _at_least(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The size below which reduced decoding must not go."""
    width, height = _target(size, max_side)
    return min(size[0], width * _REDUCING_GAP), min(size[1], height * _REDUCING_GAP)


def _target(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The stored size: the aspect ratio is kept, and nothing is enlarged."""
    width, height = size
    longer = max(width, height)
    if longer <= max_side:
        return width, height
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))


def _resize(image: Image.Image, size: tuple[int, int], max_side: int) -> Image.Image:
    target = _target(size, max_side)
    if image.size == target:
        return image
    return image.resize(target, Image.Resampling.LANCZOS)


def _encode(image: Image.Image, quality: int) -> bytes:
    image.info.clear()  # a comment or a profile would travel along
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    return sink.getvalue()


@contextmanager
def _careful_pillow(max_pixels: int) -> Iterator[None]:
    """Pillow with its own bomb check at our limit, strict about cut files, and silent.

    Its check also covers what a header does not tell, such as a GIF frame larger than its screen.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
