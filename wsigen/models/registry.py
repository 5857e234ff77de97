"""Finding models: those that ship with wsigen, by name, and any model folder, by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wsigen.errors import ModelError
from wsigen.models.config import CONFIG_FILE, ModelConfig

DEFAULT_MODEL = "nasdm-colon-20x"
MASK_MODEL = "mask-colon-20x"
SHARD_PATTERN = "weights-*-of-*.safetensors"
WEIGHTS_ROOT = Path(__file__).resolve().parent.parent / "weights"


def shipped_models() -> dict[str, Path]:
    """Return the folders of the models that ship with this installation, by name."""
    return {path.parent.name: path.parent for path in sorted(WEIGHTS_ROOT.glob(f"*/{CONFIG_FILE}"))}


def find_model(name_or_path: str | Path) -> Path:
    """Return the folder of a shipped model or of a folder on disk; a folder that exists wins over a name."""
    path = Path(name_or_path)
    if (path / CONFIG_FILE).is_file():
        return path.resolve()
    shipped = shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    names = ", ".join(shipped) or "none"
    raise ModelError(f"no model {str(name_or_path)!r}: give a folder with {CONFIG_FILE}, or one of: {names}")


def load_config(name_or_path: str | Path) -> ModelConfig:
    """Read a model's configuration without loading its weights (or torch)."""
    return ModelConfig.load(find_model(name_or_path))


def weights_sha256(folder: Path) -> str:
    """Hash of a model folder's configuration and weights, hexadecimal."""
    digest = hashlib.sha256((Path(folder) / CONFIG_FILE).read_bytes())
    for shard in sorted(Path(folder).glob(SHARD_PATTERN)):
        digest.update(shard.read_bytes())
    return digest.hexdigest()
