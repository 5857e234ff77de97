"""Sections of the report: what was painted, the response and its degree, and asked against painted styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wsigen.evaluation.asked_stain.fitting import Asked, Candidate, Measured, root_mean_square, slopes
from wsigen.evaluation.asked_stain.painting import Bench, density_sums, pooled
from wsigen.evaluation.asked_stain.styles import Masks, Source
from wsigen.evaluation.report import Report, Row, Section, sheet
from wsigen.models.config import ModelConfig
from wsigen.models.stain import STYLE_NUMBERS, StyleRange
from wsigen.models.stain_response import NUMBERS

SHOWN = 8


def setup(masks: Masks, sources: Sequence[Source], styles: int) -> Section:
    """Numbers of windows, source images and styles."""
    row = {
        "windows": len(masks.sources),
        "of held-out images": int(masks.held_out.sum()),
        "side, px": masks.crops.planes.shape[-1],
        "source images of windows": len(set(masks.sources.tolist())),
        "held-out styles": sum(source.held_out for source in sources),
        "styles, first round": styles,
        "JPEG": "none",
    }
    says = (
        "Windows whose masks are painted in every style. The numbers of a style are means and deviations of optical "
        "density over tissue pixels: over a whole source image where it is asked for, over all windows where painted."
    )
    return Section("setup", "What was painted", says, [row])


def fit(errors: Mapping[Candidate, np.ndarray], ridges: Mapping[int, float]) -> Section:
    """Errors of all candidates, and the ridges that were taken."""
    rows: list[Row] = [
        {"degree": degree, "ridge": ridge, "error": root_mean_square(error)} | dict(zip(STYLE_NUMBERS, error.tolist()))
        for (degree, ridge), error in errors.items()
    ]
    says = (
        "Polynomials of first and second degree (with all products), by ridge. Error: root mean square of what a fit "
        "without a source image says of its inputs less what is painted, in deviations of the training slides."
    )
    taken = ", ".join(f"degree {degree}, ridge {ridge:g}" for degree, ridge in ridges.items())
    return Section("fit", "The response", says, rows, [f"Tried on held-out styles: {taken}."])


def content(measured: Measured) -> Section:
    """How far the painted numbers follow the mask: each source image's masks against all, over the same styles."""
    masks, everything = measured.masks, measured.painted()
    rows: list[Row] = []
    offsets = []
    for name in dict.fromkeys(masks.sources.tolist()):
        own = ~masks.without(name)
        if not measured.sums[:, own, 0].sum(axis=1).all():
            continue  # masks of glass alone
        offsets.append((measured.painted(own) - everything).mean(axis=0))
        classes = masks.crops.part(own)["classes"]
        share = float((classes > 0).float().mean())
        rows.append(
            {"masks of": name, "windows": int(own.sum()), "nuclei": share} | dict(zip(STYLE_NUMBERS, offsets[-1]))
        )
    spread = np.std(offsets, axis=0)
    rows.append({"masks of": "deviation over source images"} | dict(zip(STYLE_NUMBERS, spread.tolist())))
    says = (
        "Painted numbers of each source image's masks less those of all masks, mean over the same styles, in "
        "deviations of the training slides; *nuclei* is their share of pixels. The response is that of all masks."
    )
    return Section("masks", "What the mask decides", says, rows)


def degrees(tried: Mapping[int, Asked], ridges: Mapping[int, float], best: int, limits: StyleRange) -> Section:
    """Errors and slopes of each degree over held-out styles."""
    rows: list[Row] = []
    for degree, asked in tried.items():
        row = {"degree": degree, "ridge": ridges[degree], "error": asked.error(limits)}
        found = slopes(asked.asked, pooled(asked.after))
        rows.append(row | {f"slope, {name}": value for name, value in zip(STYLE_NUMBERS, found)})
    says = (
        "What is painted of held-out styles with responses that have not seen the source image: root mean square of "
        "painted less asked numbers in deviations of the training slides, and slopes over the asked numbers."
    )
    return Section("degree", "The degree", says, rows, [f"Chosen: degree {best}, ridge {ridges[best]:g}."])


def asked_and_painted(found: Asked, held_out: np.ndarray) -> Section:
    """Slopes and errors of the six numbers over all masks, and slopes over those of held-out images."""
    before, after = pooled(found.before), pooled(found.after)
    columns: dict[str, Sequence[float | None]] = {
        "slope before": slopes(found.asked, before),
        "slope": slopes(found.asked, after),
        "error before": np.sqrt(np.square(before - found.asked).mean(axis=0)).tolist(),
        "error": np.sqrt(np.square(after - found.asked).mean(axis=0)).tolist(),
        "slope before, held-out masks": slopes(found.asked, pooled(found.before[:, held_out])),
        "slope, held-out masks": slopes(found.asked, pooled(found.after[:, held_out])),
    }
    rows: list[Row] = [
        {"number": name} | {column: values[i] for column, values in columns.items()}
        for i, name in enumerate(STYLE_NUMBERS)
    ]
    says = (
        "Slope of the painted number over the asked one, over held-out source images (1 is right), and root mean "
        "square of their difference: without the response (before), and with one fitted without the source image, "
        "neither its style nor its masks. Over all masks, and over those of held-out images alone."
    )
    return Section("slopes", "Asked and painted", says, rows)


def own_masks(found: Asked, masks: Masks) -> Section:
    """The same over each source image's own masks, beside its real windows."""
    values: list[list[np.ndarray]] = [[], [], []]
    for index, name in enumerate(found.names):
        own = np.flatnonzero(~masks.without(name))
        crops = masks.crops.part(own).picture.permute(0, 2, 3, 1).cpu().numpy()
        kinds = (density_sums(crops), found.before[index, own], found.after[index, own])
        if all(sums[:, 0].any() for sums in kinds):  # windows with tissue
            for kept, sums in zip(values, kinds, strict=True):
                kept.append(pooled(sums))
    if not values[0]:
        return Section(
            "own", "Held-out styles on their own masks", "None of the held-out images' windows holds tissue."
        )
    real, before, after = (np.array(kept) for kept in values)
    errors = [np.sqrt(np.square(painted - real).mean(axis=0)) for painted in (before, after)]
    pairs = zip(STYLE_NUMBERS, slopes(real, before), slopes(real, after), strict=True)
    rows: list[Row] = [
        {"number": name, "slope before": one, "slope": other, "error before": errors[0][i], "error": errors[1][i]}
        for i, (name, one, other) in enumerate(pairs)
    ]
    says = (
        f"The real windows of {len(real)} held-out source images, and paintings of the same masks in the same styles: "
        "slopes and errors of the painted numbers over the real ones. A mask says something of its stain too, and the "
        "network has learned it, so that it may follow otherwise than over masks of all images."
    )
    return Section("own", "Held-out styles on their own masks", says, rows)


def one_by_one(bench: Bench, sources: Sequence[Source], found: Asked, report: Report) -> Section:
    """The held-out styles one by one, and a picture of them."""
    kinds = {"asked": found.asked, "painted before": pooled(found.before), "painted": pooled(found.after)}
    rows = _styles_table(found.names, kinds | {"expected": found.expected})
    picture = report.picture("stains", _shown(bench, sources, found.told, np.flatnonzero(bench.masks.held_out)))
    says = (
        "Each asked for over all masks. Expected is what the response says; where that is not what is asked, the style "
        "is out of the network's reach. The picture: real windows of source images that hold one; one mask in each "
        "style before; the same with the response."
    )
    return Section("sources", "Held-out styles", says, rows, pictures=[picture])


def _shown(bench: Bench, sources: Sequence[Source], told: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Real windows of sources; below them one mask in the style of each, without the response and with it."""
    masks = bench.masks
    size = masks.crops.planes.shape[-1]
    cells = (masks.crops["classes"] > 0).float().mean(dim=(1, 2)).cpu().numpy()[windows]
    one = windows[[int(np.argsort(cells)[len(cells) // 2])]]
    real, before, after = [], [], []
    for source, row in list(zip(sources, told, strict=True))[:SHOWN]:
        own = np.flatnonzero(masks.sources == source.name)
        blank = np.full((size, size, 3), 255, np.uint8)
        real.append(masks.crops.picture[int(own[0])].permute(1, 2, 0).cpu().numpy() if len(own) else blank)
        plain = bench.range.normalise(np.array(source.style.vector))
        before.append(bench.paint(plain, one, source.style.glass_rgb)[0])
        after.append(bench.paint(row, one, source.style.glass_rgb)[0])
    return sheet([np.array(real), np.array(before), np.array(after)])


def named(bench: Bench, config: ModelConfig) -> Section:
    """The model's own named styles: what is asked, and what is painted with the response."""
    asked = np.array([style.vector for style in config.styles]).reshape(-1, NUMBERS)
    if not len(asked):
        return Section("styles", "Named styles", "The model names none.")
    everything = np.arange(len(bench.masks.sources))
    painted = pooled(bench.measure("painting named styles", config.told_stain(asked), everything))
    kinds = {"asked": asked, "painted": painted, "expected": config.painted_stain(asked)}
    rows = _styles_table([style.name for style in config.styles], kinds)
    notes = [note for style in config.styles if (note := config.stain_note(style))]
    says = "Over all masks, with the response that was fitted to all source images."
    return Section("styles", "Named styles", says, rows, [f"{note[0].upper()}{note[1:]}." for note in notes])


def _styles_table(names: Sequence[str], kinds: dict[str, np.ndarray]) -> list[Row]:
    """A row for each style and kind of its six numbers."""
    return [
        {"style": name, "numbers": kind} | dict(zip(STYLE_NUMBERS, values[index].tolist()))
        for index, name in enumerate(names)
        for kind, values in kinds.items()
    ]
