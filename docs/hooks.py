"""What the site does beyond MkDocs: code breaks between words only, fields have a table in the API pages."""

import re
from typing import Any

from griffe import Class, Extension, Object

LISTED = re.compile(r"^( *)(\w+(?:, \w+)*) {2,}(\S.*)$", flags=re.MULTILINE)
SHARED = re.compile(r"^( +)((?:\*?\w+, )+\w+): (.*(?:\n\1 +.*)*)", flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Keep flags whole, which browsers break after their hyphens, and numbers together with their errors."""

    def whole(code: re.Match[str]) -> str:
        words = [f'<span class="word">{w}</span>' if len(w) < 50 else w for w in code[1].split(" ")]
        return f"<code>{' '.join(words)}</code>"

    html = re.sub(r"(?<=\d) (±|to) (?=\d)", "&nbsp;\\1&nbsp;", html)
    return re.sub(r"<code>([^<\n]+)</code>", whole, html)


class Fields(Extension):
    """Give every field and argument a row of its own, with its comment or its part of the docstring."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Append the comments of a class's fields, `x: Array  # [B, Z]`, to its docstring as "Attributes"."""
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        rows = []
        for name, field in cls.attributes.items():
            if not name.startswith("_") and field.annotation is not None and field.lines:
                rows.append(f"    {name}: {field.lines[0].partition('  # ')[2].strip() or '&nbsp;'}")
        if rows:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Write `x0, x1: text` as two entries with the same text, and aligned `name   text` as a list."""
        if obj.docstring is not None:
            text = SHARED.sub(
                lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in m[2].split(", ")), obj.docstring.value
            )
            obj.docstring.value = LISTED.sub(r"\1- `\2`: \3", text)
