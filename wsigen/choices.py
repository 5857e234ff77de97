"""Values that a setting may have, where several modules name them. Imports nothing, so that --help stays fast."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps")
SLIDE_FORMATS = ("svs", "ome.tiff", "tiff", "dzi", "ome.zarr", "dicom")
LABEL_FORMATS = ("geojson", "db", "coco", "ome.zarr")
TRAINING_DATA_SETS = ("lizard", "consep", "crchisto", "conic", "pannuke", "folder")
LAYOUT_PRESETS = ("normal-mucosa", "adenocarcinoma", "inflamed", "muscle", "mixed")
DATASET_LAYOUTS = ("hovernet", "conic", "pannuke", "stardist", "coco")
SEAM_METHODS = ("context, blended", "context, cut", "independent", "feathered", "MultiDiffusion")
ATTENTION_BACK_ENDS = ("triton", "torch", "xformers")
NORM_BACK_ENDS = ("triton", "torch")
AUTO = "auto"  # a device or dtype that is chosen by what the machine has
