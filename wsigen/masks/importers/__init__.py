"""Importers: slide masks from the cells that other tools found. Code inside of a file is never run.

`import_mask` recognises a format from the content, reads it as a stream, maps its classes and writes the mask. There
are two kinds of sources: outlines (a module for each tool's format) and label images.
"""

from wsigen.masks.importers.importing import import_mask
from wsigen.masks.importers.report import ImportReport
from wsigen.masks.importers.settings import ImportSettings

__all__ = ["ImportReport", "ImportSettings", "import_mask"]
