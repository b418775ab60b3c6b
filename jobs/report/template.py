"""Templates to pages, and pages to files: the one dress that all pages share.

A page is one file without scripts or requests; what is put into it is escaped unless it is Markup.
"""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from schemas.storage import storage_errors

STYLE = Path(__file__).with_name("style.css")


def render_template(template: Path, **values: Any) -> str:
    """The HTML of a template, which has the stylesheet as `style`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup(STYLE.read_text(encoding="utf-8"))
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        style=style, **values
    )


def write_page(path: str | Path, page: str) -> Path:
    """Writes a page whole, and returns its path.

    Raises:
        StorageError: it cannot be written.
    """
    path = Path(path)
    with storage_errors("write", str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    return path
