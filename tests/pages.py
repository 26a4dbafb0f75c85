"""Pages read back: tables as cells, pictures as pixels, curves as the numbers that they were drawn from."""

import base64
import io
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = {"meta", "link", "img", "rect", "path"}


class Element:
    """An element of a page, with its texts and inner elements in order."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes, self.children = tag, attributes, []

    def walk(self) -> Iterator["Element | str"]:
        """Give all that is inside, in the order of the page."""
        for child in self.children:
            yield child
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, tag: str, kind: str = "") -> list["Element"]:
        """Return the inner elements with this tag and, if one is given, this class."""
        elements = (child for child in self.walk() if isinstance(child, Element) and child.tag == tag)
        return [child for child in elements if kind in ("", *child.attributes.get("class", "").split())]

    def one(self, tag: str, kind: str = "") -> "Element":
        """Return the only such element."""
        (element,) = self.all(tag, kind)
        return element

    @property
    def words(self) -> list[str]:
        """The pieces of text inside."""
        return [child for child in self.walk() if isinstance(child, str)]

    @property
    def text(self) -> str:
        """All text inside, with single blanks."""
        return " ".join("".join(self.words).split())


class _Reader(HTMLParser):
    """Builds the elements, and fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(text: str) -> Element:
    """Read a page; its tags must match."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    (page,) = reader.open
    return page


def section(page: Element, name: str) -> Element:
    """Return the section with this anchor."""
    (part,) = [part for part in page.all("section") if part.attributes["id"] == name]
    return part


def below_headings(part: Element) -> dict[str, list[Element]]:
    """Return the elements that stand below each heading of a section, by the heading's text."""
    parts: dict[str, list[Element]] = {"": []}
    for child in (child for child in part.children if isinstance(child, Element)):
        if child.tag in ("h2", "h3"):
            parts[child.text] = []
        else:
            parts[list(parts)[-1]].append(child)
    return parts


def cells(table: Element) -> list[list[str]]:
    """Return the text of each cell, row by row; the head is the first row."""
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")]


def titled(part: Element) -> dict[str, Element]:
    """Return the drawing or picture below each small title, by title."""
    boxes = [
        box
        for box in part.all("div")
        if [c.tag for c in box.children if isinstance(c, Element)][:1] == ["h4"]
    ]
    return {box.one("h4").text: [c for c in box.children if isinstance(c, Element)][1] for box in boxes}


def pixels(picture: Element) -> np.ndarray:
    """Return the embedded picture inside an element, uint8 [H, W, 3]."""
    source = picture.one("img").attributes["src"]
    with Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def curves(chart: Element, kind: str = "curve", *, log: bool = False) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each curve of a chart, or of each `band`, by the name at the curve's end.

    Places become numbers by the ticks of the axes, so that they are right to about a hundredth of the range.
    """
    x, y = (_scale(chart, *axis, log=log and axis[0] == "end") for axis in (("middle", "x"), ("end", "y")))
    leaders = [_colour(path) for path in chart.all("path", "leader")]
    names = dict(zip(leaders, (text.text for text in chart.all("text", "name")), strict=True))
    drawn = {}
    for path in chart.all("path", kind):
        places = (place.split() for place in re.split("[MLZ]", path.attributes["d"]) if place)
        drawn[names.get(_colour(path), "")] = [(x(float(a)), y(float(b))) for a, b in places]
    return drawn


def _colour(path: Element) -> str:
    return next(word for word in path.attributes["class"].split() if re.fullmatch(r"s\d", word))


def _scale(chart: Element, anchor: str, axis: str, *, log: bool):
    """Return the function from places to numbers that the ticks of an axis define."""
    marks = [text for text in chart.all("text", "tick") if text.attributes["text-anchor"] == anchor]
    numbers = [float(mark.text.replace(",", "")) for mark in marks]
    numbers = [math.log10(number) for number in numbers] if log else numbers
    slope, start = np.polyfit([float(mark.attributes[axis]) for mark in marks], numbers, 1)
    return lambda place: 10 ** (slope * place + start) if log else slope * place + start
