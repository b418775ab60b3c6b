"""What is compared: an arm is one way to train a tokenizer and to write its words.

Arms of the same pictures share everything that they do not name: steps, batches, sizes, codebook.
Seeds are the outer loop, so that a study that is stopped early has whole rounds to show.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

from tokenizer.config import DecisionConfig, EncoderConfig, HeadConfig, TokenizerConfig, TrainConfig

FSQ_LEVELS = {64: (8, 8), 240: (8, 6, 5), 512: (8, 8, 8)}
"""Codebook size -> values a channel can take, at least five each where that divides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much of everything: equal for all arms."""

    num_scenes: int = 4000
    num_held_out: int = 600
    num_captioned: int = 300
    """Of those held out, whose captions are scored attribute by attribute."""
    tokenizer_steps: int = 400
    batch_size: int = 16
    learning_rate: float = 1e-3
    keep_share: float = 1 / 3
    scene_codes: int = 512
    """Codebook size on drawn scenes; a key of FSQ_LEVELS."""
    photo_codes: int = 240
    language_steps: int = 240
    """Where arms get equal numbers of tokens."""
    language_pairs: int = 10_000
    """Pairs shown, repeats counted, where arms get equal numbers of pairs."""
    sequence_length: int = 256
    rows_per_step: int = 8
    language_learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        for name, value in (("scene", self.scene_codes), ("photo", self.photo_codes)):
            if value not in FSQ_LEVELS:
                raise ValueError(f"{name}_codes must be one of {[*FSQ_LEVELS]}, got {value}")

    @property
    def tokens_per_step(self) -> int:
        """Of the language model."""
        return self.sequence_length * self.rows_per_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train a tokenizer and to write its words."""

    name: str
    title: str
    """As tables call it."""
    pictures: str = "scenes"
    quantizer: str = "ema"
    rule: str = "threshold"
    kept: float = 0.0
    """Share of patches that rule `fixed` keeps."""
    objective: str = "error"
    positions: str = "2d"
    tokenizer_of: str | None = None
    """Another arm, whose tokenizer this one takes."""
    places: bool = True
    """Whether the stream has the place words that the tokenizer writes."""
    has_language_model: bool = False

    def tokenizer_config(
        self, budget: Budget, encoder: EncoderConfig, *, num_patches: int
    ) -> TokenizerConfig:
        """Sizes of preset `tiny`, without pictures: they decide no words."""
        num_codes = budget.scene_codes if self.pictures == "scenes" else budget.photo_codes
        head = replace(
            TokenizerConfig.preset("tiny").head,
            codebook_size=num_codes,
            positions=self.positions,
            pixel_width=0,
        )
        if self.quantizer == "fsq":
            head = _with_levels(head, FSQ_LEVELS[num_codes])
        num_kept = round(self.kept * num_patches) if self.rule == "fixed" else 0
        decision = DecisionConfig(rule=self.rule, num_kept=num_kept)
        return TokenizerConfig(encoder=encoder, head=head, decision=decision)

    def train_config(self, budget: Budget, *, seed: int) -> TrainConfig:
        """A quarter of the steps without codes, half together, a quarter as deployed."""
        return TrainConfig.of_steps(
            budget.tokenizer_steps,
            batch_size=budget.batch_size,
            learning_rate=budget.learning_rate,
            keep_share=budget.keep_share,
            objective=self.objective,
            quantizer=self.quantizer,
            seed=seed,
        )


def _with_levels(head: HeadConfig, levels: tuple[int, ...]) -> HeadConfig:
    return replace(head, code_rule="fsq", fsq_levels=levels, code_dim=len(levels))


THRESHOLD, PHOTOS_EMA = "threshold", "photos-ema"

ARMS = (
    Arm(name=THRESHOLD, title="`threshold` (default)", has_language_model=True),
    Arm(name="budget", title="`budget`", rule="budget", has_language_model=True),
    Arm(name="all", title="`fixed`, all patches", rule="fixed", kept=1.0, has_language_model=True),
    Arm(
        name="mean",
        title="`fixed`, a third of them",
        rule="fixed",
        kept=1 / 3,
        has_language_model=True,
    ),
    Arm(name="gumbel", title="objective `gumbel`", objective="gumbel", has_language_model=True),
    Arm(name="rank", title="`positions: none`", positions="none", has_language_model=True),
    Arm(
        name="unplaced",
        title="places left out of the stream",
        tokenizer_of=THRESHOLD,
        places=False,
        has_language_model=True,
    ),
    Arm(name="simvq", title="SimVQ", quantizer="simvq"),
    Arm(name="fsq", title="FSQ", quantizer="fsq"),
    Arm(name=PHOTOS_EMA, title="EMA, k-means, restarts", pictures="photos"),
    Arm(name="photos-simvq", title="SimVQ", pictures="photos", quantizer="simvq"),
    Arm(name="photos-fsq", title="FSQ", pictures="photos", quantizer="fsq"),
)
BY_NAME = {arm.name: arm for arm in ARMS}

LENGTH_ARMS = tuple(arm for arm in ARMS if arm.has_language_model)
QUANTIZER_ARMS = {
    "scenes": (BY_NAME[THRESHOLD], BY_NAME["simvq"], BY_NAME["fsq"]),
    "photos": tuple(arm for arm in ARMS if arm.pictures == "photos"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A tokenizer, and the language models on its words: what one process does in one go."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Unique in a study."""
        return f"{self.arm.name}-{self.seed}"

    @property
    def readers(self) -> tuple[Arm, ...]:
        """Arms whose language models read this tokenizer's words."""
        users = (arm for arm in ARMS if self.arm.name in (arm.name, arm.tokenizer_of))
        return tuple(arm for arm in users if arm.has_language_model)


def jobs(seeds: range, *, arms: Sequence[Arm], pictures: Container[str]) -> Iterator[Job]:
    """All jobs of these arms on these pictures, a seed at a time."""
    for seed in seeds:
        for arm in arms:
            if arm.tokenizer_of is None and arm.pictures in pictures:
                yield Job(arm=arm, seed=seed)
