"""Text files as people and programs write them: in UTF-8 or UTF-16, with a byte-order mark or without.

Editors on Windows put a byte-order mark before the text. It says how the text is encoded and is no part of the content.
"""

from __future__ import annotations

import codecs
from pathlib import Path

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a small file, without its byte-order mark; UnicodeDecodeError (a ValueError) for other encodings."""
    return decoded(path.read_bytes())


def decoded(data: bytes) -> str:
    """Text of UTF-8, or of UTF-16 with its byte-order mark; line ends become single line feeds."""
    text = data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")
