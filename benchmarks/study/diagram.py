"""The tokenizer as a drawing: what turns an image into words, and what is there for training only.

Boxes lie on a grid of columns and rows; a drawing program would make it prettier, and could not be
changed with the code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_COLUMN, _ROW = 150, 96
_WIDTH, _HEIGHT = 122, 58
_MARGIN = 14

_STYLE = """
svg{background:#fff;font-family:system-ui,sans-serif}
rect{rx:8;stroke-width:1.5}text{text-anchor:middle;font-size:13px;fill:#1b1f27}
.small{font-size:11px;fill:#626b7a}.frozen rect{fill:#eef1f5;stroke:#8a93a3}
.words rect{fill:#e6effc;stroke:#2f6fde}.training rect{fill:#fdf1e4;stroke:#e0782a}
.data rect{fill:#fff;stroke:#c9ced7}path{fill:none;stroke:#626b7a;stroke-width:1.5}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """One part, or what travels between two."""

    name: str
    note: str
    column: int
    row: int
    kind: str
    """`data`, `frozen`, `words` (decides words) or `training` (training and pictures only)."""

    @property
    def middle(self) -> tuple[float, float]:
        """Pixels."""
        left, top = _MARGIN + self.column * _COLUMN, _MARGIN + self.row * _ROW
        return left + _WIDTH / 2, top + _HEIGHT / 2


BOXES = (
    Box(name="image", note="bytes", column=0, row=0, kind="data"),
    Box(name="encoder", note="frozen image tower", column=1, row=0, kind="frozen"),
    Box(name="selector", note="scores N patches", column=2, row=0, kind="words"),
    Box(name="keep rule", note="how many stay", column=3, row=0, kind="words"),
    Box(name="merger", note="dropped into kept", column=3, row=1, kind="words"),
    Box(name="codebook", note="K codes", column=4, row=1, kind="words"),
    Box(name="sentence", note="codes and places", column=5, row=1, kind="data"),
    Box(name="decoder", note="rebuilds features", column=4, row=2, kind="training"),
    Box(name="pixel decoder", note="a picture", column=5, row=2, kind="training"),
)
ARROWS = (
    ("image", "encoder"),
    ("encoder", "selector"),
    ("selector", "keep rule"),
    ("keep rule", "merger"),
    ("encoder", "merger"),
    ("merger", "codebook"),
    ("codebook", "sentence"),
    ("codebook", "decoder"),
    ("decoder", "pixel decoder"),
)


def draw_architecture() -> str:
    """The drawing, as a whole SVG file."""
    width = 2 * _MARGIN + max(box.column for box in BOXES) * _COLUMN + _WIDTH
    height = 2 * _MARGIN + max(box.row for box in BOXES) * _ROW + _HEIGHT
    by_name = {box.name: box for box in BOXES}
    arrows = "".join(_arrow(by_name[start], by_name[end]) for start, end in ARROWS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="From an image to words"><style>{_STYLE}</style>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8"/></marker></defs>'
        f"{arrows}{''.join(_box(box) for box in BOXES)}</svg>\n"
    )


def _box(box: Box) -> str:
    x, y = box.middle
    return (
        f'<g class="{box.kind}"><rect x="{x - _WIDTH / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" '
        f'width="{_WIDTH}" height="{_HEIGHT}"/><text x="{x:.0f}" y="{y - 2:.0f}">'
        f'{escape(box.name)}</text><text class="small" x="{x:.0f}" y="{y + 16:.0f}">'
        f"{escape(box.note)}</text></g>"
    )


def _arrow(start: Box, end: Box) -> str:
    """Along a row, down a column, or down first and then along."""
    (x1, y1), (x2, y2) = start.middle, end.middle
    points: Sequence[tuple[float, float]]
    if start.row == end.row:
        points = ((x1 + _WIDTH / 2, y1), (x2 - _WIDTH / 2, y2))
    elif start.column == end.column:
        points = ((x1, y1 + _HEIGHT / 2), (x2, y2 - _HEIGHT / 2))
    else:
        points = ((x1, y1 + _HEIGHT / 2), (x1, y2), (x2 - _WIDTH / 2, y2))
    path = " L".join(f"{x:.0f} {y:.0f}" for x, y in points)
    return f'<path d="M{path}" marker-end="url(#tip)"/>'
