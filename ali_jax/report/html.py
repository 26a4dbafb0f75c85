"""The building blocks of pages, which escape the text that they are given."""

import base64
import importlib.resources
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

# A page may load nothing: all that it shows is embedded.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
EMPTY_ICON = "data:,"  # without it, browsers request /favicon.ico


class Cell(NamedTuple):
    """A cell of a table. A plain string stands for a cell without a kind."""

    text: str
    kind: str = ""  # a class of style.css: number, words
    code: bool = False


class TableRow(NamedTuple):
    """A row of a table; its first cell names it."""

    cells: Sequence[str | Cell]
    kind: str = ""  # a class of style.css: control, differs


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole page; the parts of its body must be HTML."""
    style = importlib.resources.files("ali_jax.report").joinpath("style.css").read_text()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="{EMPTY_ICON}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """Return a section with a heading and an anchor, or "" if all of its parts are empty."""
    inside = "\n".join(part for part in parts if part)
    return f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n{inside}\n</section>' if inside else ""


def contents(sections: Mapping[str, str]) -> str:
    """Return the table of contents: links to sections, whose titles are given by name."""
    links = (f'<a href="#{escape(name)}">{escape(title)}</a>' for name, title in sections.items())
    return f'<nav aria-label="Contents">{"".join(links)}</nav>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """Return a heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def folded(summary: str, inside: str) -> str:
    """Return HTML that is hidden until its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def code(text: str) -> str:
    """Return text as a block of code."""
    return f'<pre class="code">{escape(text)}</pre>'


def figure(inside: str, seen: str, look_for: str = "") -> str:
    """Return a figure of HTML, with a caption that says what is seen and what to look for."""
    look = f" <b>Look for</b> {escape(look_for)}" if look_for else ""
    return f"<figure>{inside}<figcaption>{escape(seen)}{look}</figcaption></figure>"


def picture(image: np.ndarray | bytes, description: str, *, wide: str = "40rem") -> str:
    """Return an embedded picture, uint8 [H, W, 3] or the bytes of a PNG file, at most `wide` wide."""
    source = f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}"
    return f'<div class="plate" style="--wide: {wide}"><img src="{source}" alt="{escape(description)}"></div>'


def _png(image: np.ndarray | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    is_grey = (image[..., :1] == image).all()
    Image.fromarray(image[..., 0] if is_grey else image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def titled(title: str, inside: str) -> str:
    """Return HTML below a small heading, to be one of several parts of a figure."""
    return f"<div><h4>{escape(title)}</h4>{inside}</div>"


def group(kind: str, parts: Iterable[str]) -> str:
    """Return parts side by side (kind `panels` or `panels wide`) or one below the other (`strips`)."""
    return f'<div class="{kind}">{"".join(parts)}</div>'


def table(columns: Sequence[str | Cell], rows: Iterable[TableRow], caption: str = "") -> str:
    """Return a table, which scrolls if it is wider than the page. Without columns it has no head."""
    scope_of_row, scope_of_column = ' scope="row"', ' scope="col"'
    head = "".join(_cell("th", column, scope_of_column) for column in columns)
    body = "".join(
        f"<tr{_kind(row.kind)}>{_cell('th', row.cells[0], scope_of_row)}"
        f"{''.join(_cell('td', cell) for cell in row.cells[1:])}</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll" tabindex="0"><table>{title}{head}<tbody>{body}</tbody></table></div>'


def number(value: float | None, digits: int = 4) -> Cell:
    """Return a number as a cell, with the text of `format_number`."""
    return Cell(format_number(value, digits), "number")


def format_number(value: float | None, digits: int = 4) -> str:
    """Return a number as text: integers in full, others with `digits` digits, and a dash if not finite."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def _cell(tag: str, cell: str | Cell, attributes: str = "") -> str:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    text = escape(cell.text)
    return f"<{tag}{_kind(cell.kind)}{attributes}>{f'<code>{text}</code>' if cell.code else text}</{tag}>"


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
