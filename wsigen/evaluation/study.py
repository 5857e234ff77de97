"""``wsigen study segmentation``: does painted tissue help to train a network that finds nuclei?

The same segmenter is trained for the same number of steps on real patches, on painted ones, and on both, and tested on
real source images that neither the painter nor any segmenter saw. Painted patches are of the masks of the training
side; in one arm masks with rare classes are drawn more often.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t

from wsigen.errors import SettingsError
from wsigen.evaluation.fidelity import find_nuclei, score
from wsigen.evaluation.material import Material, PaintOptions, load_painter, paint_patches, real_patches
from wsigen.evaluation.report import Report, Section
from wsigen.networks.measuring import SegmentationNetwork
from wsigen.system.caching import FileStamp, file_stamp
from wsigen.system.devices import choose_device
from wsigen.system.replacing import written_whole
from wsigen.system.reporting import Reporter, silent
from wsigen.system.side_by_side import side_by_side
from wsigen.training.data import manifest as folder_format
from wsigen.training.data.manifest import Manifest, TrainingImage
from wsigen.training.loop import train
from wsigen.training.settings import TrainSettings

ARMS = ("real", "painted", "both", "both, rare classes more often")
EVEN = (0.0,) * 6  # every mask as often, some several times, each time with other noise
RARE = (20.0, 0.0, 0.0, 2.0, 20.0, 0.0)  # neutrophils, plasma cells and eosinophils
SCORES = "scores.json"  # of a run that is trained and tested


@dataclass(frozen=True)
class Study:
    """What to compare and how; see the options of the command."""

    data: Path
    out: Path
    recipe: TrainSettings
    model: str
    seeds: int = 3
    painted: int = 4000  # patches
    window: int = 128  # of painted and of test patches; few pictures are labelled throughout on larger ones
    paint: PaintOptions = field(default_factory=PaintOptions)
    device: str = "auto"
    jobs: int = 1  # networks trained at a time, each in a process of its own
    compile_model: bool | None = None  # None: on a GPU
    resume: bool = False

    @property
    def compiles(self) -> bool:
        """Whether networks are compiled for training."""
        on_gpu = torch.device(choose_device(self.device).device).type == "cuda"
        return on_gpu if self.compile_model is None else self.compile_model


def study_segmentation(study: Study, progress: Reporter = silent) -> Report:
    """Paint, train every arm with every seed, test, and write the report. What is finished is kept for ``resume``."""
    if study.recipe.task != "segment":
        raise SettingsError(f"study segmentation: the recipe's task is {study.recipe.task!r}; give one with 'segment'")
    if study.seeds < 2:
        raise SettingsError(f"--seeds {study.seeds}: intervals need 2 or more")
    runs = study.out / "runs"
    if study.out.exists() and any(study.out.iterdir()) and not study.resume:
        raise SettingsError(f"{study.out}: exists; continue it with --resume, or choose another folder with -o")
    folders = {"real": study.data}
    folders |= {arm: study.out / "data" / arm.replace(", ", "-").replace(" ", "-") for arm in ARMS[1:]}
    for arms, rare in ((ARMS[1:3], EVEN), (ARMS[3:], RARE)):
        missing = [arm for arm in arms if not (folders[arm] / folder_format.FILE_NAME).is_file()]
        if not missing:
            continue
        material, images = _paint(study, rare, partial(progress, f"painted for {' and '.join(map(repr, arms))}"))
        for arm in missing:
            write_folder(folders[arm], study.data, material, images, with_real=arm != "painted")
    todo = [
        (folder, runs / f"{'real' if folder == study.data else folder.name}-{seed}", seed)
        for seed in range(study.seeds)
        for folder in folders.values()
    ]
    with side_by_side(study.jobs) as submit:
        if study.jobs > 1 and study.compiles and not all((run / SCORES).is_file() for _, run, _ in todo):
            submit(_compile, study)()
        waiting = [submit(_scores, study, *each) for each in todo]
        results: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in ARMS}
        for number, scores in enumerate(waiting):
            results[ARMS[number % len(ARMS)]].append(scores())
            progress("trained and tested", number + 1, len(waiting))
    return _report(study, results)


def _paint(study: Study, rare: tuple[float, ...], progress: Callable[[int, int], None]) -> tuple[Material, np.ndarray]:
    """Paint masks of the training side, drawn with weights by class, and say with what material."""
    choice = choose_device(study.device)
    rare = rare[: len(folder_format.load(study.data).classes)]
    device = torch.device(choice.device)
    material = real_patches(study.data, "train", study.window, study.painted, device, study.paint.seed, rare=rare)
    done = 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        progress(done, study.painted)

    return material, paint_patches(load_painter(study.model, choice), material, study.paint, choice, tick=tick)


def write_folder(folder: Path, real: Path, material: Material, images: np.ndarray, with_real: bool) -> Manifest:
    """Write a training folder of painted patches; the validation side, and if asked the real pictures, are linked."""
    with written_whole(folder) as partial:
        return _write_patches(partial, real, material, images, with_real)


def _write_patches(folder: Path, real: Path, material: Material, images: np.ndarray, with_real: bool) -> Manifest:
    manifest = folder_format.load(real)
    for part in ("images", "labels", "instances"):
        (folder / part).mkdir(parents=True)
    entries: list[TrainingImage] = []
    for entry in manifest.images:
        if entry.split == "train" and not with_real:
            continue
        for locate in (folder_format.image_path, folder_format.label_path, folder_format.instance_path):
            _link(locate(real, entry.name), locate(folder, entry.name))
        entries.append(entry)
    patches = material.patches
    names = [f"painted_{number:05d}" for number in range(len(patches))]
    with ThreadPoolExecutor(8) as pool:  # encoding leaves Python's lock
        planes = (images, patches.classes, patches.instances)
        for _ in pool.map(_write_patch, [folder] * len(names), names, *planes):
            pass
    height, width = patches.classes.shape[1:]
    entries += [TrainingImage(name, "painted", "painted", "train", width, height, "manual") for name in names]
    result = replace(manifest, images=tuple(entries))
    folder_format.save(result, folder)
    return result


def _write_patch(folder: Path, name: str, image: np.ndarray, classes: np.ndarray, ids: np.ndarray) -> None:
    """Write one patch of a training folder: image (H, W, 3) uint8, classes (H, W) uint8 and ids (H, W)."""
    import pyvips

    picture = str(folder_format.image_path(folder, name))
    pyvips.Image.new_from_array(image).webpsave(picture, lossless=True, effort=0)  # 14 times faster than effort 4
    pyvips.Image.new_from_array(classes).pngsave(str(folder_format.label_path(folder, name)))
    small = np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.uint16)
    if ids.min() > 0:
        small += 1
    plane = pyvips.Image.new_from_array(np.ascontiguousarray(small)).copy(interpretation="grey16")
    plane.pngsave(str(folder_format.instance_path(folder, name)))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _compile(study: Study) -> None:
    """Take each kind of step once: networks that start side by side find them compiled in torch's cache on the disk.

    Twelve that compile at once take minutes; uncompiled, a step takes several times as long.
    """
    phases = tuple(replace(phase, steps=len(phase.windows)) for phase in study.recipe.phases)
    with tempfile.TemporaryDirectory(prefix="wsigen-study-") as folder:
        train(
            replace(study.recipe, phases=phases),
            study.data,
            Path(folder),
            device=torch.device(choose_device(study.device).device).type,
            compile_model=True,
            report=lambda _: None,
        )


def _scores(study: Study, folder: Path, run: Path, seed: int) -> list[dict[str, Any]]:
    """Train one network and test it; read what an earlier call wrote."""
    stored = run / SCORES
    if stored.is_file():
        return json.loads(stored.read_text(encoding="utf-8"))
    device = torch.device(choose_device(study.device).device)
    result = train(
        replace(study.recipe, seed=1 + seed),
        folder,
        run,
        device=device.type,
        resume=True,
        compile_model=study.compile_model,
        report=lambda _: None,
    )
    if result.step < result.total_steps:  # Ctrl-C ends a run at a step with a checkpoint
        raise KeyboardInterrupt
    network = SegmentationNetwork.from_pretrained(run / "model").to(device)
    test = _test_side(study.data, study.window, device)
    patches = test.patches
    found = find_nuclei(network, patches.images, device)
    rows = score(found, patches.classes, patches.instances, len(test.class_names))[0].rows(test.class_names)
    stored.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    return rows


def _test_side(data: Path, window: int, device: torch.device) -> Material:
    """All held-out patches, read once by each process unless the data are prepared anew."""
    return _read_test_side(data, file_stamp(data / folder_format.FILE_NAME), window, device)


@lru_cache(maxsize=1)
def _read_test_side(data: Path, _: FileStamp | None, window: int, device: torch.device) -> Material:
    return real_patches(data, "val", window, 1 << 30, device)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval, from Student's t over seeds."""
    width = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(width)


def _report(study: Study, results: dict[str, list[list[dict[str, Any]]]]) -> Report:
    command = {"model": study.model, "painted patches": study.painted, "seeds": study.seeds} | asdict(study.paint)
    folder = study.out / "report"
    report = Report(folder, "Does painted tissue help to train a segmenter?", command, overwrite=True)
    test = _test_side(study.data, study.window, torch.device(choose_device(study.device).device)).patches
    setup = {"patches": len(test), "side, px": study.window, "source images": len(set(test.groups))}
    report.add(Section("test", "Tested on", "Held-out real patches, on a grid of half their side.", [setup]))
    for key in ("dice", "pq"):
        rows = []
        for number, first in enumerate(results["real"][0]):
            row: dict[str, Any] = {"class": first["class"], "nuclei": first["nuclei"]}
            by_arm = {arm: [scores[number][key] for scores in results[arm]] for arm in ARMS}
            for arm, values in by_arm.items():
                if any(value is None for value in values):
                    continue
                mean, width = interval(values)
                row[arm] = f"{mean:.3f} ± {width:.3f}"
                if arm != "real":
                    change, spread = interval([a - b for a, b in zip(values, by_arm["real"])])
                    row[f"{arm}: change"] = f"{change:+.3f} ± {spread:.3f}"
            rows.append(row)
        says = (
            f"{'Dice by pixel' if key == 'dice' else 'Panoptic quality'} on held-out real source images: mean over "
            f"{study.seeds} seeds ± half of the 95 % interval; changes are against *real* of the same seed."
        )
        report.add(Section(key, key.upper() if key == "pq" else "Dice", says, rows))
    return report
