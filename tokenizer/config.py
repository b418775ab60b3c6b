"""What a tokenizer is made of, as frozen dataclasses that travel through JSON.

Everything here can change words, except the decoders' sizes and what `TrainConfig` says, so
nearly all of it enters the fingerprint. The reader is strict: an unknown or missing key is an
error, because a key that is skipped in silence gives codes that look right and are not. That
costs a format number for every new field.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from schemas.errors import ArtifactError

POSITIONS = ("2d", "none")
ORIENTATIONS = ("exif", "stored")
RULES = ("threshold", "budget", "fixed")
OBJECTIVES = ("error", "gumbel")
QUANTIZERS = ("ema", "simvq", "fsq")
MASKINGS = ("strict", "leaky")
CODE_RULES = ("cosine", "euclidean", "fsq")
PRECISIONS = ("float32", "bfloat16")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Which frozen image tower, and which of its features."""

    model: str = "builtin:scenes-clip"
    """`builtin:NAME`, `local-dir:PATH` (open_clip's folder layout), `hf-hub:ORG/NAME`, an open_clip
    model name, or `timm:NAME`."""
    pretrained: str | None = None
    """open_clip's weight tag for a model name; `random` draws weights from `seed` (tests)."""
    image_size: int | None = None
    """Pixels a side; None takes the model's own."""
    feature_layer: int = -2
    """Block whose patch outputs are used, counted from the end: -1 last, -2 penultimate."""
    center: bool = True
    """Whether features are centred and scaled by a mean and deviation stored at training."""
    seed: int = 0
    """Only for `pretrained: random`."""

    def __post_init__(self) -> None:
        _check(bool(self.model), "encoder model must not be empty")
        _check(
            self.feature_layer < 0,
            f"feature_layer counts from the end (-1 is the last block), got {self.feature_layer}",
        )
        _check(
            self.image_size is None or self.image_size > 0,
            f"image_size must be positive, got {self.image_size}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessConfig:
    """How stored bytes become the encoder's input: Pillow, squashed to a square, bicubic."""

    image_size: int
    """Pixels a side after the squash."""
    mean: tuple[float, float, float] = CLIP_MEAN
    deviation: tuple[float, float, float] = CLIP_DEVIATION
    decoder: str = "pillow"
    orientation: str = "exif"
    """`exif`: turned as its tag says; `stored`: as the pixels lie in the file, as LaVIT has it."""
    resize: str = "squash"
    interpolation: str = "bicubic-antialias"

    def __post_init__(self) -> None:
        _check(
            self.orientation in ORIENTATIONS,
            f"orientation must be one of {ORIENTATIONS}, got {self.orientation!r}",
        )
        # One value each: written down so that another one is a new value and not a silent change.
        known = ("pillow", "squash", "bicubic-antialias")
        given = (self.decoder, self.resize, self.interpolation)
        _check(given == known, f"preprocessing must be {known}, got {given}")
        _check(self.image_size > 0, f"image_size must be positive, got {self.image_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Sizes of selector, merger, projection, codebook and decoder."""

    width: int | None = None
    """Channels of merger and decoder; None takes the encoder's (and needs no input projection)."""
    num_heads: int = 4
    mlp_width: int = 256
    merger_blocks: int = 2
    decoder_blocks: int = 2
    """0 for no decoder: such a head writes words, and rebuilds nothing from them."""
    codebook_size: int = 512
    code_dim: int = 32
    positions: str = "2d"
    """`2d`: learned row and column embeddings in merger and decoder; `none`: the paper's form."""
    masking: str = "strict"
    """`strict`: a masked key has no weight, so that kept rows can be computed alone; `leaky`: the
    official softmax, which gives masked keys a little weight and needs all rows."""
    code_rule: str = "cosine"
    """What nearest means: `cosine`, to unit codes; `euclidean`, from a unit vector to codes of any
    length, as the official code has it; `fsq`, rounding to a grid of `fsq_levels`."""
    fsq_levels: tuple[int, ...] = ()
    """Values a channel of a code can take; `fsq` only. Their product is `codebook_size`, their
    number `code_dim`."""
    pixel_width: int = 0
    """Channels of the decoder that draws pictures from features; 0 for none."""

    def __post_init__(self) -> None:
        _check(self.positions in POSITIONS, f"positions must be one of {POSITIONS}")
        _check(self.masking in MASKINGS, f"masking must be one of {MASKINGS}")
        _check(self.code_rule in CODE_RULES, f"code_rule must be one of {CODE_RULES}")
        _check(self.pixel_width >= 0, f"pixel_width must not be negative: {self.pixel_width}")
        if self.code_rule == "fsq":
            _check(
                math.prod(self.fsq_levels) == self.codebook_size
                and len(self.fsq_levels) == self.code_dim
                and min(self.fsq_levels, default=0) > 2,
                f"fsq_levels {self.fsq_levels} must be over 2 each, {self.code_dim} of them "
                f"(code_dim), with {self.codebook_size} (codebook_size) as their product",
            )
        else:
            _check(not self.fsq_levels, "fsq_levels goes with code_rule `fsq`")
        _check(
            self.decoder_blocks >= 0, f"decoder_blocks must not be negative: {self.decoder_blocks}"
        )
        _check(
            self.decoder_blocks > 0 or self.pixel_width == 0,
            "pictures are drawn from what a decoder rebuilds: pixel_width needs decoder_blocks",
        )
        for name in ("num_heads", "mlp_width", "merger_blocks", "code_dim"):
            _check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _check(self.codebook_size > 1, f"codebook_size must be over 1, got {self.codebook_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionConfig:
    """The deterministic rule that says which patches are kept."""

    rule: str = "threshold"
    """`threshold`: p > tau; `budget`: the top round(sum p) patches; `fixed`: the top num_kept."""
    tau: float = 0.5
    """Keep probability above which `threshold` keeps. Set by training."""
    offset: float = 0.0
    """Subtracted from the keep logit before the sigmoid. Set by training."""
    num_kept: int = 0
    """Patches that `fixed` keeps."""

    def __post_init__(self) -> None:
        _check(self.rule in RULES, f"rule must be one of {RULES}, got {self.rule!r}")
        _check(0.0 < self.tau < 1.0, f"tau must be inside (0, 1), got {self.tau}")
        _check(
            (self.num_kept > 0) == (self.rule == "fixed"),
            f"num_kept goes with rule `fixed` and must be positive there, got {self.num_kept}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """A tokenizer before training."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    decision: DecisionConfig = field(default_factory=DecisionConfig)

    @classmethod
    def preset(cls, name: str, *, encoder: EncoderConfig | None = None) -> Self:
        """A named configuration (`tiny`, `lavit`), with another encoder if one is given."""
        if name not in PRESETS:
            raise ValueError(f"no tokenizer preset {name!r}: choose one of {sorted(PRESETS)}")
        preset_encoder, head = PRESETS[name]
        return cls(encoder=encoder or preset_encoder, head=head)


PRESETS: dict[str, tuple[EncoderConfig, HeadConfig]] = {
    # 0.85 M parameters at encoder width 128, and 0.19 M that draw: a few steps a second of 64
    # images on two cores.
    "tiny": (EncoderConfig(), HeadConfig(pixel_width=64)),
    # LaVIT, arXiv 2309.04669: EVA-CLIP ViT-g/14, last block before the final norm, rank only.
    "lavit": (
        EncoderConfig(
            model="EVA01-g-14",
            pretrained="laion400m_s11b_b41k",
            image_size=224,
            feature_layer=-1,
            center=False,
        ),
        HeadConfig(
            num_heads=16,
            mlp_width=6144,
            merger_blocks=12,
            decoder_blocks=12,
            codebook_size=16384,
            code_dim=32,
            positions="none",
            pixel_width=0,
        ),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a tokenizer is trained: three phases counted in steps, and what holds the length."""

    feature_steps: int = 500
    """Phase 1: selector, merger and decoder, without quantization. Skipped with a start."""
    joint_steps: int = 1000
    """Phase 2: codebook from k-means, then everything together."""
    deployed_steps: int = 500
    """Phase 3: selector and tau fixed; the rest trains under the rule that will be deployed."""
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    objective: str = "error"
    """What gives the selector a reason: `error` regresses the reconstruction error of dropped
    patches; `gumbel` is the paper's straight-through sampling with a ratio term."""
    keep_share: float = 1 / 3
    """rho: the mean share of patches that is kept."""
    ratio_weight: float = 2.0
    """lambda of the ratio term; `gumbel` only."""
    selector_weight: float = 1.0
    """Weight of the error regression; `error` only."""
    sampling_noise: float = 0.3
    """Scale of the logistic noise on the standardised error score while sampling; `error` only."""
    commitment_weight: float = 0.25
    quantizer: str = "ema"
    """`ema`: k-means codebook with moving averages and restarts; `simvq`: a frozen codebook under a
    trained linear map; `fsq`: rounding to a grid, of the head's `fsq_levels` or of levels chosen
    for its codebook size."""
    codebook_decay: float = 0.99
    dead_code_share: float = 0.03
    """A code below this share of its expected count is restarted on a vector of the batch."""
    kmeans_vectors: int = 1_000_000
    kmeans_iterations: int = 10
    cache_bytes: int = 2 << 30
    """Encoder features are kept in memory (float16) up to this size, else computed anew a step."""
    pixel_images: int = 8
    """Images a step that the pixel decoder learns from, where the head has one."""
    pixel_every_steps: int = 1
    """Steps from one step of the pixel decoder to the next."""
    pixel_cache_bytes: int = 1 << 30
    """Decoded pictures are kept in memory up to this size, else decoded anew."""
    statistics_images: int = 2048
    """Images the mean, deviation and threshold are measured on."""
    precision: str = "float32"
    """`bfloat16` trains merger and decoder under autocast; quantizer and losses stay float32."""
    log_every_steps: int = 25
    """Steps of a report, and of the window that codebook usage is counted over."""
    validate_every_steps: int = 0
    """Steps between measurements on images that are held out; 0 holds none out."""
    validation_share: float = 0.05
    """Of the images, by the digest of their bytes, that are held out."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; 0 for those of an early end alone."""
    keep_checkpoints: int = 2
    pictures_every_steps: int = 0
    """Steps between sheets of the picture page; 0 for none."""
    tensorboard: bool = False
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (
            "feature_steps",
            "joint_steps",
            "deployed_steps",
            "warmup_steps",
            "validate_every_steps",
            "checkpoint_every_steps",
            "pictures_every_steps",
        ):
            _check(getattr(self, name) >= 0, f"{name} must not be negative")
        for name in (
            "batch_size",
            "log_every_steps",
            "statistics_images",
            "kmeans_vectors",
            "keep_checkpoints",
            "pixel_images",
            "pixel_every_steps",
        ):
            _check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _check(self.deployed_steps > 0, "deployed_steps must be positive: phase 3 is what is used")
        _check(0 < self.keep_share < 1, f"keep_share must be inside (0, 1), got {self.keep_share}")
        _check(
            0 < self.validation_share < 1,
            f"validation_share must be inside (0, 1), got {self.validation_share}",
        )
        _check(self.sampling_noise > 0, f"sampling_noise must be positive: {self.sampling_noise}")
        _check(self.learning_rate > 0, f"learning_rate must be positive: {self.learning_rate}")
        _check(self.objective in OBJECTIVES, f"objective must be one of {OBJECTIVES}")
        _check(self.quantizer in QUANTIZERS, f"quantizer must be one of {QUANTIZERS}")
        _check(self.precision in PRECISIONS, f"precision must be one of {PRECISIONS}")

    @classmethod
    def of_steps(cls, num_steps: int, **options: Any) -> Self:
        """A quarter without quantization, half together, the last quarter under the rule."""
        quarter = max(1, num_steps // 4)
        return cls(
            feature_steps=quarter,
            joint_steps=max(0, num_steps - 2 * quarter),
            deployed_steps=quarter,
            **options,
        )


Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as JSON values; `from_json` reads it back."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], value: Any, *, where: str) -> Config:
    """A dataclass from JSON values.

    Args:
        kind: the dataclass.
        value: a mapping with exactly its fields.
        where: what is read, for messages.

    Raises:
        ArtifactError: a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where} must be a mapping, got {type(value).__name__}")
    hints = get_type_hints(kind)
    for name in sorted({*value} ^ {*hints}):
        problem = "has an unknown key" if name in value else "lacks the key"
        raise ArtifactError(
            f"{where} {problem} {name!r}: it was written by another version or altered; "
            "use the version that wrote it, or train again"
        )
    fields = {
        name: _convert(hint, value[name], where=f"{where}.{name}") for name, hint in hints.items()
    }
    try:
        return kind(**fields)
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where=where)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        parts = get_args(hint)
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        if len(parts) == len(value):
            return tuple(
                _convert(part, v, where=where) for part, v in zip(parts, value, strict=True)
            )
    if get_origin(hint) is dict and isinstance(value, Mapping):
        return dict(value)
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) in allowed:  # exact: True is an int to isinstance
        return value
    raise ArtifactError(f"{where} is {value!r}, which is not of the expected type")
