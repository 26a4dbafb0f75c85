"""Text that a terminal may be shown: names of files and of data are other people's."""


def printable(text: str) -> str:
    """Return a text with its control characters, line breaks excepted, written out as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
