"""What a worker needs to paint windows, as plain data, and the record of a run by which a canvas knows its own.

A slide is a function of the fields of PaintSpec, of the *content* of the mask and of the weights, and of what computes
it: the device, its libraries, and how many threads share one operation. Paths, the number of workers and the size of
blocks do not count.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wsigen.choices import DTYPES
from wsigen.diffusion.guidance import is_guided
from wsigen.errors import SettingsError
from wsigen.models.stain import StainStyle
from wsigen.painting.grid import WindowGrid
from wsigen.pixels import PIXELS

# On a CPU every operation runs on one thread, whatever the machine: torch's group_norm and its float32 convolutions
# round differently with two. The cores are filled by painting several batches at once: see WorkerThreads.
INTRA_OP_THREADS = 1


@dataclass(frozen=True)
class PaintSpec:
    """All that a process needs to paint any window of a slide; JSON-serialisable.

    ``source`` and ``model`` are paths (``model`` may name a shipped one), ``mpp`` the microns per pixel that is painted
    at, ``device`` what torch calls it ("cpu", "cuda"), never "auto". ``conditions`` are values of the slide by the name
    of the condition, but for the stain's, which is ``style``. Raises SettingsError for values out of range.
    """

    source: str
    model: str
    style: StainStyle
    mpp: float
    seed: int = 0
    sampler: str = "dpm++2m"
    num_inference_steps: int = 8
    guidance_scale: float = 1.0
    window: int = 256
    overlap: int = 32
    blend: int = 0
    batch_size: int = 4
    device: str = "cpu"
    dtype: str = "float32"
    conditions: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise SettingsError(f"--batch-size {self.batch_size}: must be at least 2 (a batch of 1 rounds differently)")
        if not 0 <= self.seed < 1 << 64:
            raise SettingsError(f"--seed {self.seed}: must lie in [0, 2^64)")
        if self.dtype not in DTYPES:
            raise SettingsError(f"--dtype {self.dtype}: choose one of {', '.join(DTYPES)}")

    @property
    def guided(self) -> bool:
        """Whether painting is guided at all: a scale of 1 is no guidance."""
        return is_guided(self.guidance_scale)

    @property
    def sampling(self) -> str:
        """How windows are sampled, in a few words for people."""
        guided = f" with guidance {self.guidance_scale:g}" if self.guided else ""
        return f"{self.num_inference_steps} steps{guided}, seed {self.seed}"

    def grid(self, width: int, height: int) -> WindowGrid:
        """The windows of a slide of width x height pixels."""
        return WindowGrid(width, height, self.window, self.overlap, self.blend)

    def to_json(self) -> str:
        """Serialise; from_json reads it back to an equal object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PaintSpec":
        """Parse what to_json wrote."""
        data = json.loads(text)
        conditions = tuple((name, value) for name, value in data["conditions"])
        return cls(**{**data, "style": StainStyle.from_config(data["style"]), "conditions": conditions})


def environment(device: str) -> dict[str, str | int]:
    """What computes the pixels: the number of the pixels, the version of torch, and the kind of device."""
    import torch

    if torch.device(device).type == "cuda":
        kind = f"cuda {torch.version.cuda}, {torch.cuda.get_device_name(device)}"
    else:
        kind = f"{device}, {torch.backends.cpu.get_cpu_capability()}, {INTRA_OP_THREADS} thread per operation"
    return {"pixels": PIXELS, "torch": torch.__version__, "device": kind}


def run_record(
    spec: PaintSpec,
    mask_sha256: str,
    model_sha256: str,
    extra: Mapping[str, Any] = {},
    where: Mapping[str, str | int] | None = None,
) -> dict[str, Any]:
    """Everything that decides the pixels, as plain JSON: two runs of equal records paint equal slides.

    The hashes stand for the contents of mask and weights. ``extra`` is for what else the caller's set-up decides by,
    such as the implementations of attention and normalisation; ``where`` is the environment of the machines that
    paint, if that is not this one.
    """
    settings = {**asdict(spec), "eta": 0.0}  # of ddim; it stands in the records of all canvases
    for place in ("source", "model", "device"):
        del settings[place]
    if not settings["conditions"]:  # as in records of before there were any
        del settings["conditions"]
    settings["style"] = {"vector": list(spec.style.vector), "glass_rgb": list(spec.style.glass_rgb)}
    hashes = {"mask_sha256": mask_sha256, "model_sha256": model_sha256}
    return json.loads(
        json.dumps({**settings, **hashes, "environment": dict(where or environment(spec.device)), **extra})
    )


Difference = tuple[str, Any, Any]  # dotted key, and the values that stand under it here and there


def first_difference(stored: Any, wanted: Any, key: str = "") -> Difference | None:
    """The first difference of two JSON values, None if they are equal. That of the pixels' number comes before all."""
    if not (isinstance(stored, Mapping) and isinstance(wanted, Mapping)):
        return None if stored == wanted else (key, stored, wanted)
    for name in sorted(stored.keys() | wanted.keys(), key=lambda name: (name not in ("environment", "pixels"), name)):
        found = first_difference(stored.get(name), wanted.get(name), f"{key}.{name}" if key else name)
        if found:
            return found
    return None


def in_words(difference: Difference) -> str:
    """A difference of run records for people."""
    key, stored, wanted = difference
    if key != "environment.pixels":
        return f"{key} is {stored!r} there and {wanted!r} here"
    if stored is None:
        return f"its pixels are older than their numbers, and this version of wsigen paints number {wanted}"
    return f"its pixels are of number {stored}, and this version of wsigen paints number {wanted}"
