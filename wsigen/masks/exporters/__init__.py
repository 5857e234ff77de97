"""Exporters: the nuclei of a slide mask in the formats of other tools, with their classes, exact to the pixel.

`export_mask` writes one of `FORMATS`. Outlines run along pixel edges, so importing them again gives the same mask.
"""

from wsigen.masks.exporters.exporting import FORMATS, ExportReport, Target, export_mask

__all__ = ["FORMATS", "ExportReport", "Target", "export_mask"]
