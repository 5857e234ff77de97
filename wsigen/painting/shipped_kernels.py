"""What the kernels of the shipped models are compiled for, known before torch and a GPU are there.

The list lies in `kernels.json`, longest to compile first; `wsigen.painting.kernel_tracing` writes it anew. A list that
does not fit costs time and nothing else: what a painter needs beside it is compiled when the painter opens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wsigen_kernels.compiling import Specialisation

KERNELS = Path(__file__).with_name("kernels.json")


def listed(model: str) -> list[Specialisation]:
    """What a shipped model launches at its default settings; nothing for another model."""
    return [Specialisation(**row) for row in _read()["models"].get(model, [])]


def default_model() -> str:
    """Name of the model that paints where none is chosen, known without what models import."""
    return _read()["default"]


def _read() -> dict[str, Any]:
    return json.loads(KERNELS.read_text(encoding="utf-8"))
