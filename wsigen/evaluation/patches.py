"""``wsigen evaluate patches``: a model, or published samples, against real held-out patches, as a report folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from wsigen.errors import ModelError, SettingsError
from wsigen.evaluation.discriminability import NETWORK_STEPS, discriminate, network_auc, radial_spectrum
from wsigen.evaluation.distances import compare, inception_score
from wsigen.evaluation.diversity import diversity
from wsigen.evaluation.features import Inception, PatchFeatures, describe
from wsigen.evaluation.fidelity import find_nuclei, score, shuffled
from wsigen.evaluation.material import (
    LabelledPatches,
    Material,
    PaintOptions,
    jpeg_history,
    load_painter,
    paint_patches,
    published_samples,
    real_patches,
)
from wsigen.evaluation.memorisation import WINDOW, TrainingIndex, centre, pixel_similarity, template_side
from wsigen.evaluation.report import Report, Section, sheet
from wsigen.evaluation.stain import BINS, CHANNELS, StainStatistics
from wsigen.models.registry import DEFAULT_MODEL
from wsigen.networks.denoiser import Denoiser
from wsigen.networks.measuring import FEATURES, SEGMENTER, FeatureNetwork, SegmentationNetwork
from wsigen.system.devices import DeviceChoice, choose_device
from wsigen.system.reporting import Reporter, silent

DIVERSITY_MASKS, DIVERSITY_SEEDS = 16, 4
SUSPECTS = 32  # patches whose pixels are compared, painted and held-out real ones
SHOWN = 12


@dataclass(frozen=True)
class PatchEvaluation:
    """What to evaluate and how; see the options of the command."""

    data: Path
    out: Path
    model: str = ""
    samples: Path | None = None  # published samples in place of a model
    features: str = FEATURES
    segmenter: str = SEGMENTER
    count: int = 1000
    window: int | None = None
    paint: PaintOptions = field(default_factory=PaintOptions)
    jpeg_quality: int = 87
    inception: bool = False
    inception_weights: str | None = None
    memorisation: bool = True
    network_steps: int = NETWORK_STEPS  # of the small network that tells painted from real
    device: str = "auto"
    overwrite: bool = False


@dataclass
class _Bench:
    """What the sections share: patches of equal masks, networks and features."""

    settings: PatchEvaluation
    device: torch.device
    choice: DeviceChoice
    material: Material
    real: LabelledPatches
    painted: LabelledPatches
    network: FeatureNetwork
    segmenter: SegmentationNetwork
    of_real: PatchFeatures
    of_painted: PatchFeatures
    model: Denoiser | None
    progress: Reporter


def evaluate_patches(settings: PatchEvaluation, progress: Reporter = silent) -> Report:
    """Measure and write the report; return it. Raises a WsigenError before anything is written where it can."""
    if settings.model and settings.samples:
        raise SettingsError("evaluate patches: give --model or --samples, not both")
    choice = choose_device(settings.device)
    device = torch.device(choice.device)
    network = FeatureNetwork.from_pretrained(settings.features).to(device)
    segmenter = SegmentationNetwork.from_pretrained(settings.segmenter).to(device)
    model = None if settings.samples else load_painter(settings.model or DEFAULT_MODEL, choice)
    published = published_samples(settings.samples, settings.count) if settings.samples else None
    window = published.images.shape[1] if published is not None else settings.window or _window_of(model)
    if published is not None and settings.window not in (None, window):
        raise SettingsError(f"--window {settings.window}: the samples are of {window} px")
    material = real_patches(settings.data, "val", window, settings.count, device)  # the same for every model
    report = Report(settings.out, "Painted patches against real ones", _command(settings), settings.overwrite)
    real = material.patches
    if published is None:
        assert model is not None
        total = len(real)
        done = 0

        def tick(n: int) -> None:
            nonlocal done
            done += n
            progress("painting", done, total)

        painted = real.with_images(paint_patches(model, material, settings.paint, choice, tick=tick))
    else:
        painted = published
        size = min(len(real), len(painted))  # distances and floors need equal numbers
        real, painted = real.take(np.arange(size)), painted.take(np.arange(size))
    real, painted = (part.with_images(jpeg_history(part.images, settings.jpeg_quality)) for part in (real, painted))
    of_real, of_painted = (describe(network, part.images, device) for part in (real, painted))
    bench = _Bench(
        settings, device, choice, material, real, painted, network, segmenter, of_real, of_painted, model, progress
    )
    sections = [_setup, _distances, _fidelity, _discriminability, _stain]
    if published is None:
        sections.append(_diversity)
    if settings.memorisation:
        sections.append(_memorisation)
    for number, section in enumerate(sections):
        report.add(section(bench, report))
        progress("sections", number + 1, len(sections))
    return report


def _window_of(model: Denoiser | None) -> int:
    assert model is not None
    return model.config.window


def _command(settings: PatchEvaluation) -> dict[str, object]:
    values = asdict(settings)
    paint = values.pop("paint")
    kept = {key: str(value) if isinstance(value, Path) else value for key, value in values.items() if key != "out"}
    return kept | {key: value for key, value in paint.items()}


def _setup(bench: _Bench, report: Report) -> Section:
    """What was compared, and a picture of it: masks' real pictures above their paintings."""
    shown = np.linspace(0, len(bench.real) - 1, min(SHOWN, len(bench.real))).astype(int)
    rows = [
        {
            "patches": len(bench.real),
            "side, px": bench.real.images.shape[1],
            "um/px": bench.network.config.mpp,
            "source images": len(set(bench.real.groups)),
            "resize": "none",
            "JPEG quality of both": bench.settings.jpeg_quality,
        }
    ]
    pictures = [report.picture("patches", sheet([bench.real.images[shown], bench.painted.images[shown]]))]
    says = "Real held-out patches (above) and painted ones (below). Neighbouring patches share up to half their pixels."
    return Section("setup", "What was compared", says, rows, pictures=pictures)


def _distances(bench: _Bench, report: Report) -> Section:
    groups = bench.real.groups
    own = compare(bench.of_painted.features, bench.of_real.features, groups)
    rows: list[dict[str, object]] = [_distance_row(bench.network.config.name, own, bench.real.images.shape[1])]
    notes = []
    if bench.settings.inception:
        try:
            inception = Inception(bench.device, bench.settings.inception_weights)
            painted, real = inception(bench.painted.images), inception(bench.real.images)
            row = _distance_row("Inception v3 (FID, KID)", compare(painted.features, real.features, groups), 299)
            row["inception score"] = inception_score(painted.logits)[0]
            row["of real"] = inception_score(real.logits)[0]
            rows.append(row)
        except ModelError as error:
            notes.append(f"Inception: {error}.")
    return Section(
        "distances",
        "Distances",
        "Fréchet and kernel distances of features. *Half* columns compare N/2 with N/2 patches; the floor is real "
        "against real, the excess is what painting adds to it. *Floor by image* keeps source images apart: what a new "
        "slide costs.",
        rows,
        notes,
    )


def _distance_row(name: str, found, side: int) -> dict[str, object]:  # type: ignore[no-untyped-def]
    return {
        "features": name,
        "N": found.n,
        "read at, px": side,
        "Fréchet": found.frechet,
        "half": found.frechet_half,
        "floor": found.frechet_floor,
        "excess": found.excess,
        "floor by image": found.frechet_floor_images,
        "KID x 1000": 1000 * found.kid,
        "floor x 1000": 1000 * found.kid_floor,
    }


def _fidelity(bench: _Bench, report: Report) -> Section:
    names, count = bench.material.class_names, len(bench.material.class_names)
    painted_found = find_nuclei(bench.segmenter, bench.painted.images, bench.device)
    real_found = find_nuclei(bench.segmenter, bench.real.images, bench.device)
    order = shuffled(len(bench.painted))
    painted, real = bench.painted, bench.real
    tables = [
        ("painted", score(painted_found, painted.classes, painted.instances, count)[0]),
        ("real", score(real_found, real.classes, real.instances, count)[0]),
        ("shuffled", score(painted_found, painted.classes[order], painted.instances[order], count)[0]),
    ]
    by_class = zip(*(scores.rows(names) for _, scores in tables))
    rows = []
    for painted_row, real_row, shuffled_row in by_class:
        row: dict[str, object] = {"class": painted_row["class"], "nuclei": painted_row["nuclei"]}
        for key in ("dice", "pq", "rq", "count error"):
            row |= {key: painted_row[key], f"real {key}": real_row[key], f"shuffled {key}": shuffled_row[key]}
        ceiling, value = real_row["dice"], painted_row["dice"]
        row["dice / real"] = value / ceiling if value is not None and ceiling else None  # type: ignore[operator]
        rows.append(row)
    return Section(
        "fidelity",
        "Mask fidelity",
        "What a segmentation network reads from the picture, against the mask: Dice by pixel, panoptic quality (PQ) "
        "and recognition quality (RQ) by nucleus at an IoU above 0.5, |found - there| over there for counts. *Real*: "
        "the same network on real pictures, the ceiling. *Shuffled*: against another patch's mask, the floor.",
        rows,
    )


def _discriminability(bench: _Bench, report: Report) -> Section:
    if len(set(bench.real.groups)) < 2:
        return Section("discriminability", "Discriminability", "Needs patches of two or more source images.")
    rows = discriminate(bench.painted, bench.real, (bench.of_painted.scales, bench.of_real.scales))
    steps = bench.settings.network_steps
    rows.append({"view": "a small network", "AUC": network_auc(bench.painted, bench.real, bench.device, steps)})
    painted, real = (radial_spectrum(part.images).mean(0) for part in (bench.painted, bench.real))

    def draw(axes) -> None:  # type: ignore[no-untyped-def]
        frequency = (np.arange(len(real)) + 0.5) / len(real) * 0.5
        axes.plot(frequency, painted - real)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xlabel="spatial frequency, cycles/px", ylabel="log power, painted - real")

    gap = int(np.abs(painted - real).argmax())
    notes = [f"The spectra differ most at {(gap + 0.5) / len(real) * 0.5:.2f} cycles/px: {(painted - real)[gap]:+.2f}."]
    says = (
        "AUC of linear probes told to tell painted from real patches, on source images that they did not see; 0.5 is "
        "indistinguishable. The views of single statistics say where a difference lies; the network learns from pixels."
    )
    return Section("discriminability", "Discriminability", says, rows, notes, report.plot("spectrum", draw))


def _stain(bench: _Bench, report: Report) -> Section:
    painted, real = (StainStatistics.of(part.images) for part in (bench.painted, bench.real))

    def draw(axes) -> None:  # type: ignore[no-untyped-def]
        middle = (BINS[1:] + BINS[:-1]) / 2
        for index, name in enumerate(CHANNELS):
            axes.plot(middle, painted.histogram[index], color=name)
            axes.plot(middle, real.histogram[index], color=name, linestyle=":")
        axes.set(xlabel="optical density", ylabel="density", title="painted (solid), real (dotted)")

    says = "Optical density over tissue by colour channel, and the earth mover's distance of its distributions."
    return Section("stain", "Stain", says, painted.rows(real), pictures=report.plot("stain", draw))


def _diversity(bench: _Bench, report: Report) -> Section:
    assert bench.model is not None
    masks = np.linspace(0, len(bench.real) - 1, min(DIVERSITY_MASKS, len(bench.real))).astype(int)
    pixels = []
    for seed in range(DIVERSITY_SEEDS):
        options = PaintOptions(**(asdict(bench.settings.paint) | {"seed": 1000 + seed}))
        painted = paint_patches(bench.model, bench.material, options, bench.choice, masks)
        pixels.append(jpeg_history(painted, bench.settings.jpeg_quality))
        bench.progress("diversity", seed + 1, DIVERSITY_SEEDS)
    stack = np.stack(pixels, 1)
    features = describe(bench.network, stack.reshape(-1, *stack.shape[2:]), bench.device).features
    found = diversity(features.reshape(len(masks), DIVERSITY_SEEDS, -1), stack, bench.of_real.features)
    says = "Paintings of one mask from several seeds. A share of variance of 0 would be one picture a mask."
    picture = report.picture("seeds", sheet([stack[:SHOWN, seed] for seed in range(DIVERSITY_SEEDS)]))
    return Section("diversity", "Diversity", says, [found], pictures=[picture])


def _memorisation(bench: _Bench, report: Report) -> Section:
    window = min(WINDOW, bench.real.images.shape[1])
    settings = bench.settings
    training = real_patches(settings.data, "train", window, 1 << 30, bench.device, machine=True).patches
    training = training.with_images(jpeg_history(training.images, settings.jpeg_quality))
    held_out = bench.real.with_images(centre(bench.real.images, window))
    bench.progress("training patches", 0, len(training))
    index = TrainingIndex.built(bench.network, training, held_out, window // 2, bench.device)
    rows, pairs = [], {}
    for name, patches in (("painted", bench.painted), ("real, held out", bench.real)):
        distance, which = index.nearest(bench.network, patches.images, bench.device)
        suspects = distance.argsort()[:SUSPECTS]
        middles = centre(patches.images[suspects], window)
        alike = np.array([pixel_similarity(m, training.images[w]) for m, w in zip(middles, which[suspects])])
        rows.append(
            {
                "patches": name,
                "share of near-copies": float((distance < index.near).mean()),
                "median distance": float(np.median(distance)),
                "least distance": float(distance.min()),
                f"largest correlation of {len(suspects)} suspects": float(alike.max()),
                "above 0.9": float((alike > 0.9).mean()),
            }
        )
        shown = suspects[:SHOWN]
        pairs[name] = [centre(patches.images[shown], window), training.images[which[shown]]]
    pictures = [report.picture("suspects", sheet(pairs["painted"]))]
    says = (
        f"Nearest of {len(training):,} training patches of {window} px in features, over the eight symmetries. A "
        "near-copy lies nearer than all but 1 % of real held-out patches do. The nearest pairs are compared pixel by "
        f"pixel at every shift (the middle {template_side(window)} px, grey). The picture holds real pixels: do not "
        "publish it."
    )
    return Section("memorisation", "Memorisation", says, rows, pictures=pictures)
