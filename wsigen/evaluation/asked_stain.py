"""``wsigen evaluate stain``: the stain that is asked for against the stain that is painted, and a response to mend it.

Windows of many source images are painted in many styles: those of the source images, designed ones around them, and
what a first fit would tell the network to get the sources' styles, so that the response is known best where it is used.
Both sides are measured alike: means and deviations of optical density over tissue pixels, without JPEG. From this the
network's response is fitted (:mod:`wsigen.models.stain_response`). Held-out source images then say what it is worth: in
turn each is left out of the fit, with its style and its masks, and its style is asked for, without the response and
with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsigen.errors import DataError, ModelError, SettingsError
from wsigen.evaluation.material import PaintOptions, check_window, crop_inputs, load_painter, paint_windows
from wsigen.evaluation.report import Report, Row, Section, sheet
from wsigen.models.conditioned import WindowInputs
from wsigen.models.config import CONFIG_FILE, ModelConfig
from wsigen.models.nasdm import NasdmModel
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.models.stain import STYLE_NUMBERS, StainStyle, StyleRange, optical_density, tissue_pixels
from wsigen.models.stain_response import NUMBERS, StainResponse, fit_response
from wsigen.system.devices import choose_device
from wsigen.system.reporting import Reporter, silent
from wsigen.training.data import manifest as folder_format
from wsigen.training.fields import RGB, Plane
from wsigen.training.patches import PatchBank
from wsigen.training.settings import TrainSettings

CANDIDATES = tuple((degree, ridge) for degree in (1, 2) for ridge in (0.03, 0.1, 0.3, 1.0, 3.0))
GOOD = 1.05  # of the least error: what a stronger ridge may have
LEAST_STYLES = 12  # fewer say nothing of coefficients
SPREAD = 0.15  # variance that designed styles have in every direction, beside what the sources show
FIRST_FIT = (1, 1.0)  # degree and ridge of the fit that says what to paint in the second round
SHOWN = 8
GLASS = StainStyle("").glass_rgb


@dataclass(frozen=True)
class StainEvaluation:
    """What to evaluate and how; see the options of the command."""

    data: Path
    out: Path
    model: str = ""
    windows: int = 64
    styles: int = 64  # that the response is fitted to
    window: int | None = None
    paint: PaintOptions = field(default_factory=PaintOptions)
    write: Path | None = None  # folder of the model with the response
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Masks:
    """Windows whose masks are painted."""

    crops: Tensor  # (N, 8, W, W) uint8, see PatchBank
    sources: np.ndarray  # (N,) names of their source images
    held_out: np.ndarray  # (N,) bool: of the validation side

    def without(self, source: str) -> np.ndarray:
        """Which are not of this source image, (N,) bool."""
        return self.sources != source


@dataclass(frozen=True)
class Source:
    """A source image, or a named style of the model: its style as measured, and whether it is held out."""

    name: str
    style: StainStyle
    held_out: bool


def density_sums(patches: np.ndarray) -> np.ndarray:
    """Tissue of patches (N, H, W, 3) uint8: number of pixels, sums and sums of squares of optical density: (N, 7).

    Sums of several patches add up to those of all; :func:`pooled` makes a style's six numbers of them.
    """
    sums = []
    for patch in patches:
        density = optical_density(patch).reshape(-1, 3)
        tissue = density[tissue_pixels(density)].astype(np.float64)
        sums.append([len(tissue), *tissue.sum(axis=0), *np.square(tissue).sum(axis=0)])
    return np.array(sums, np.float64).reshape(-1, 1 + NUMBERS)


def pooled(sums: np.ndarray) -> np.ndarray:
    """A style's six numbers (..., 6) over all patches of ``sums`` (..., N, 7), as ``measure_style`` has them.

    Raises DataError where they hold no tissue.
    """
    total = sums.sum(axis=-2)
    count = total[..., :1]
    if not count.all():
        raise DataError("no tissue was painted: every window is as pale as glass; is this a trained painter?")
    mean = total[..., 1:4] / count
    variance = np.maximum(total[..., 4:] / count - np.square(mean), 0.0)
    return np.concatenate([mean, np.sqrt(variance)], axis=-1)


class _Bench:
    """Paints the masks in styles and measures them; counts what is done."""

    def __init__(self, settings: StainEvaluation, model: NasdmModel, masks: Masks, progress: Reporter) -> None:
        self.settings, self.model, self.masks, self.progress = settings, model, masks, progress
        self.choice = choose_device(settings.device)
        self.range: StyleRange = model.config.style_range

    def paint(self, told: np.ndarray, which: np.ndarray, glass: Sequence[int] = GLASS) -> np.ndarray:
        """Paint windows numbered ``which`` with the network told (6,): (n, W, W, 3) uint8."""
        device = self.masks.crops.device
        style = torch.from_numpy(np.asarray(told, np.float32)).to(device)
        white = torch.tensor(glass, dtype=torch.float32, device=device)

        def inputs(part: Tensor) -> WindowInputs:
            each = (row.expand(len(part), -1) for row in (style, white))
            return crop_inputs(self.model.config, self.masks.crops[part], *each)

        numbers = torch.from_numpy(which).to(device)
        return paint_windows(self.model, inputs, numbers, self.settings.paint, self.choice)

    def measure(self, what: str, told: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Sums (K, n, 7) of windows ``which`` painted with each of ``told`` (K, 6)."""
        sums = []
        for number, row in enumerate(told):
            sums.append(density_sums(self.paint(row, which)))
            self.progress(what, number + 1, len(told))
        return np.array(sums)


@dataclass(frozen=True)
class Measured:
    """What was painted: inputs (K, 6), whose style each is ("" for a designed one), and sums (K, N, 7)."""

    told: np.ndarray
    of_source: np.ndarray
    sums: np.ndarray
    masks: Masks
    range: StyleRange

    def painted(self, windows: np.ndarray | None = None) -> np.ndarray:
        """Normalised numbers (K, 6) over these windows, all for None."""
        return self.range.scaled(pooled(self.sums if windows is None else self.sums[:, windows]))

    def with_more(self, told: np.ndarray, sums: np.ndarray) -> Measured:
        """With what was painted of other inputs (S, 6) for the styles of the source images, in their order."""
        names = self.of_source[self.of_source != ""]
        return replace(
            self,
            told=np.concatenate([self.told, told]),
            of_source=np.concatenate([self.of_source, names]),
            sums=np.concatenate([self.sums, sums]),
        )

    def fit(self, degree: int, ridge: float, without: str = "") -> StainResponse:
        """The response, of what has nothing to do with one source image: neither its style nor its masks."""
        kept = (self.of_source != without) | (self.of_source == "")
        windows = self.masks.without(without)
        return fit_response(self.told[kept], self.painted(windows)[kept], degree, ridge)

    def left_out_errors(self, degree: int, ridge: float) -> np.ndarray:
        """What responses that have not seen a source image say of its inputs, less what was painted: (S, 6).

        Both over the masks of the other source images; each has the input of its style, and that of the second round.
        """
        errors = []
        for number in np.flatnonzero(self.of_source != ""):
            name = str(self.of_source[number])
            painted = self.painted(self.masks.without(name))[number]
            errors.append(self.fit(degree, ridge, name).painted(self.told[number]) - painted)
        return np.array(errors)


def evaluate_stain(settings: StainEvaluation, progress: Reporter = silent) -> Report:
    """Measure, write the report and, where it is asked for, the model with its response; return the report.

    Raises a WsigenError before anything is written where it can.
    """
    folder = find_model(settings.model or DEFAULT_MODEL)
    config = ModelConfig.load(folder)
    _check(settings, folder, config)
    choice = choose_device(settings.device)
    device = torch.device(choice.device)
    model, window = load_painter(str(folder), choice), settings.window or config.window
    check_window(model, window)
    masks, sources = read_masks(settings, window, device)
    report = Report(settings.out, "Stains asked for and painted", _command(settings), settings.overwrite)
    bench = _Bench(settings, model, masks, progress)
    sources = with_named(config, sources)
    held_out = [source for source in sources if source.held_out]
    report.add(_setup(masks, sources, settings))
    chosen = choose_styles(config, sources, settings.styles)
    told = np.array([row for row, _ in chosen], np.float32)
    everything = np.arange(len(masks.sources))
    sums = bench.measure("painting to fit", told, everything)
    measured = Measured(told, np.array([name for _, name in chosen]), sums, masks, config.style_range)
    inverse = inverse_styles(measured, sources)
    measured = measured.with_more(inverse, bench.measure("painting to fit, second round", inverse, everything))
    ridges, section = choose_ridges(measured)
    report.add(section)
    report.add(_content(measured))
    tried = {degree: _ask(bench, held_out, degree, ridge, measured) for degree, ridge in ridges.items()}
    degree, section = choose_degree(tried, ridges, config.style_range)
    report.add(section)
    found, response = tried[degree], measured.fit(degree, ridges[degree])
    report.add(_slopes(found, masks.held_out))
    report.add(_own_masks(found, masks))
    report.add(_sources(bench, held_out, found, report))
    mended = replace(config, stain_response=response)
    report.add(_named(bench, mended))
    if settings.write is not None:
        write_config(folder, mended, settings.write)
        report.add(Section("written", "Written", f"The response is in {settings.write / CONFIG_FILE}."))
    return report


def _check(settings: StainEvaluation, folder: Path, config: ModelConfig) -> None:
    """Refuse at once what would be refused after the painting."""
    if config.paints != "slide" or config.unet.style_dim != NUMBERS:
        raise SettingsError(f"--model {folder}: is told no stain style; name a painter of slides")
    if settings.styles < LEAST_STYLES:
        raise SettingsError(f"--styles {settings.styles}: a response needs {LEAST_STYLES} or more")
    target = settings.write
    if target is None:
        return
    if target.resolve() == folder:
        if not os.access(folder, os.W_OK):
            raise SettingsError(f"--write {target}: cannot be written to; name a new folder, which gets a copy")
    elif target.exists():
        raise SettingsError(f"--write {target}: exists and is not the model's folder; name that or a new one")
    elif not target.resolve().parent.is_dir():
        raise SettingsError(f"--write {target}: the folder {target.resolve().parent} does not exist; make it first")


def write_config(folder: Path, config: ModelConfig, target: Path) -> None:
    """Write ``config`` to the model in ``folder`` itself, or to a new copy of it; no reader finds half of either."""
    same = target.resolve() == folder
    whole = target / CONFIG_FILE if same else target
    part = whole.with_name(whole.name + ".partial")
    try:
        if same:
            part.write_text(config.to_json(), encoding="utf-8")
        else:
            shutil.copytree(folder, part, dirs_exist_ok=True)
            (part / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        part.replace(whole)
    except OSError as error:
        raise ModelError(f"--write {target}: cannot be written ({error.strerror}); name another folder") from error
    finally:  # of what failed or was stopped
        part.unlink(missing_ok=True) if same else shutil.rmtree(part, ignore_errors=True)


def read_masks(settings: StainEvaluation, window: int, device: torch.device) -> tuple[Masks, list[Source]]:
    """Windows of the folder's source images, and the images' styles: half of the windows of each side of the split.

    Of a side each source image gives as many, from all over it. A folder without training pictures gives those of the
    validation side alone. Raises DataError where no picture holds a window.
    """
    manifest = folder_format.load(settings.data)
    crops, names, held_out, sources = [], [], [], []
    sides = [side for side in ("val", "train") if any(entry.split == side for entry in manifest.images)]
    for side in sides:
        bank = PatchBank(settings.data, manifest, side, TrainSettings(crop_stride=max(1, window // 4)), device)
        drawn = {entry.group for entry in bank.entries if entry.label_quality == "manual"}
        pairs = zip(bank.groups, bank.styles, strict=True)
        sources += [Source(name, style, side == "val") for name, style in pairs if name in drawn]
        for name, places in _places(bank, window, drawn, settings.windows // len(sides)):
            image, x, y = (torch.from_numpy(column).to(device) for column in places)
            crops.append(bank.cut(image, x, y, window, torch.zeros_like(image)).planes)
            names += [name] * len(image)
            held_out += [side == "val"] * len(image)
    if not any(held_out):
        raise DataError(f"{settings.data}: no held-out picture holds a window of {window} px; take a smaller --window")
    if len(set(names)) < 2:
        raise DataError(
            f"{settings.data}: one source image alone holds windows of {window} px; a fit needs two or more"
        )
    return Masks(torch.cat(crops), np.array(names), np.array(held_out)), sources


def _places(bank: PatchBank, window: int, drawn: set[str], wanted: int) -> list[tuple[str, list[np.ndarray]]]:
    """Image index, x and y of windows by source image: as many of each, evenly from all it holds."""
    try:
        table = bank.table(window)
    except DataError:  # no picture of this side holds one: the other side may
        return []
    image, x, y = (column.cpu().numpy() for column in (table.image, table.x, table.y))
    groups = np.array([entry.group for entry in bank.entries])[image]
    rows = {name: np.flatnonzero(groups == name) for name in sorted(drawn & set(groups.tolist()))}
    if len(rows) > wanted:
        names = list(rows)
        rows = {names[i]: rows[names[i]] for i in np.linspace(0, len(names) - 1, wanted).astype(int)}
    each = max(1, wanted // max(1, len(rows)))
    found = []
    for name, of_name in rows.items():
        chosen = of_name[np.linspace(0, len(of_name) - 1, min(each, len(of_name))).astype(int)]
        found.append((name, [image[chosen], x[chosen], y[chosen]]))
    return found


def with_named(config: ModelConfig, sources: Sequence[Source]) -> list[Source]:
    """The sources, and the model's named styles in place of the training images that they are of."""
    named = [Source(f"style {style.name}", style, False) for style in config.styles]
    vectors = [np.array(source.style.vector) for source in named]

    def is_named(source: Source) -> bool:
        return any(np.allclose(source.style.vector, vector, atol=1e-4) for vector in vectors)

    kept = [source for source in sources if source.held_out or not is_named(source)]
    return [source for source in kept if source.held_out] + named + [s for s in kept if not s.held_out]


def choose_styles(config: ModelConfig, sources: Sequence[Source], count: int) -> list[tuple[np.ndarray, str]]:
    """Inputs to paint with, (6,) each, and whose style each is: "" for designed ones.

    All held-out sources and named styles, training images for up to half of ``count``; the rest are designed:
    quasi-random (Sobol) normal points about the sources, which vary as these do and a little in every direction,
    clamped as inputs are.
    """
    from scipy.stats import norm, qmc

    limits = config.style_range
    always = sum(source.held_out for source in sources) + len(config.styles)  # these come first
    first, training = list(sources[:always]), sources[always:]
    room = min(len(training), max(0, count // 2 - always))
    first += [training[i] for i in np.linspace(0, len(training) - 1, room).astype(int)] if room else []
    chosen = [(limits.normalise(np.array(source.style.vector)), source.name) for source in first]
    known = np.array([limits.normalise(np.array(source.style.vector)) for source in sources], np.float64)
    covariance = (np.cov(known.T) if len(known) > NUMBERS else np.eye(NUMBERS)) + SPREAD * np.eye(NUMBERS)
    draws = qmc.Sobol(NUMBERS, rng=0).random_base2(max(1, int(np.ceil(np.log2(max(2, count))))))
    points = norm.ppf(np.clip(draws, 1e-3, 1 - 1e-3)) @ np.linalg.cholesky(covariance).T + known.mean(axis=0)
    designed = np.clip(points[: max(0, count - len(chosen))], -limits.clamp, limits.clamp)
    return [*chosen, *((row.astype(np.float32), "") for row in designed)]


def inverse_styles(measured: Measured, sources: Sequence[Source]) -> np.ndarray:
    """What a first fit, without the source image itself, tells the network for each of the styles painted: (S, 6)."""
    vectors = {source.name: measured.range.scaled(np.array(source.style.vector)) for source in sources}
    names = measured.of_source[measured.of_source != ""].tolist()
    fits = [measured.fit(*FIRST_FIT, name) for name in names]
    told = [fit.told(vectors[name], measured.range.clamp) for fit, name in zip(fits, names, strict=True)]
    return np.array(told, np.float32)


def choose_ridges(measured: Measured) -> tuple[dict[int, float], Section]:
    """The ridge of each degree: the strongest of those that predict about best what source images left out paint.

    The inverse goes furthest where the fit is least certain, so that a weaker ridge must earn its place.
    """
    rows: list[Row] = []
    errors: dict[tuple[int, float], float] = {}
    for candidate in CANDIDATES:
        found = np.sqrt(np.square(measured.left_out_errors(*candidate)).mean(axis=0))
        errors[candidate] = float(np.sqrt(np.square(found).mean()))
        row = {"degree": candidate[0], "ridge": candidate[1], "error": errors[candidate]}
        rows.append(row | dict(zip(STYLE_NUMBERS, found.tolist())))
    ridges = {}
    for degree in dict.fromkeys(degree for degree, _ in CANDIDATES):
        of_degree = {ridge: error for (one, ridge), error in errors.items() if one == degree}
        ridges[degree] = max(ridge for ridge, error in of_degree.items() if error <= GOOD * min(of_degree.values()))
    says = (
        "Polynomials of first and second degree (with all products), by ridge. Error: root mean square of what a fit "
        "without a source image says of its inputs less what is painted, in deviations of the training slides."
    )
    taken = ", ".join(f"degree {degree}, ridge {ridge:g}" for degree, ridge in ridges.items())
    return ridges, Section("fit", "The response", says, rows, [f"Tried on held-out styles: {taken}."])


def choose_degree(found: dict[int, _Asked], ridges: dict[int, float], limits: StyleRange) -> tuple[int, Section]:
    """The degree with which what is painted of held-out styles is nearest to what is asked.

    That a polynomial predicts well does not suffice: its inverse picks the inputs where it promises most.
    """
    rows: list[Row] = []
    errors = {}
    for degree, asked in found.items():
        painted = pooled(asked.after)
        missed = limits.scaled(painted) - limits.scaled(asked.asked)
        errors[degree] = float(np.sqrt(np.square(missed).mean()))
        row = {"degree": degree, "ridge": ridges[degree], "error": errors[degree]}
        rows.append(row | {f"slope, {name}": v for name, v in zip(STYLE_NUMBERS, slopes(asked.asked, painted))})
    best = min(errors, key=lambda degree: errors[degree])
    says = (
        "What is painted of held-out styles with responses that have not seen the source image: root mean square of "
        "painted less asked numbers in deviations of the training slides, and slopes over the asked numbers."
    )
    return best, Section("degree", "The degree", says, rows, [f"Chosen: degree {best}, ridge {ridges[best]:g}."])


def _setup(masks: Masks, sources: Sequence[Source], settings: StainEvaluation) -> Section:
    row = {
        "windows": len(masks.sources),
        "of held-out images": int(masks.held_out.sum()),
        "side, px": masks.crops.shape[-1],
        "source images of windows": len(set(masks.sources.tolist())),
        "held-out styles": sum(source.held_out for source in sources),
        "styles, first round": settings.styles,
        "JPEG": "none",
    }
    says = (
        "Windows whose masks are painted in every style. The numbers of a style are means and deviations of optical "
        "density over tissue pixels: over a whole source image where it is asked for, over all windows where painted."
    )
    return Section("setup", "What was painted", says, [row])


def _content(measured: Measured) -> Section:
    """How far the painted numbers follow the mask: each source image's masks against all, over the same styles."""
    masks, everything = measured.masks, measured.painted()
    rows: list[Row] = []
    offsets = []
    for name in dict.fromkeys(masks.sources.tolist()):
        own = ~masks.without(name)
        if not measured.sums[:, own, 0].sum(axis=1).all():
            continue  # masks of glass alone
        offsets.append((measured.painted(own) - everything).mean(axis=0))
        classes = masks.crops[torch.from_numpy(own).to(masks.crops.device), Plane.CLASSES]
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


def slopes(asked: np.ndarray, painted: np.ndarray) -> list[float | None]:
    """Slope of each painted number over the asked one, (S, 6) both; None where there are not two different ones."""
    centred = asked - asked.mean(axis=0)
    spread = np.square(centred).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (centred * painted).sum(axis=0) / spread
    return [float(value) if enough else None for value, enough in zip(found, spread > 1e-12)]


@dataclass(frozen=True)
class _Asked:
    """Styles that were asked for, (S, 6) each: asked, told, expected of it, and painted over some masks or all."""

    names: tuple[str, ...]
    asked: np.ndarray
    told: np.ndarray
    expected: np.ndarray
    before: np.ndarray  # sums (S, N, 7), without a response
    after: np.ndarray


def _ask(bench: _Bench, sources: Sequence[Source], degree: int, ridge: float, measured: Measured) -> _Asked:
    """Paint held-out styles, each as the response tells that has not seen its source image."""
    responses = [measured.fit(degree, ridge, source.name) for source in sources]
    limits = measured.range
    asked = np.array([source.style.vector for source in sources])
    own = [int(np.flatnonzero(measured.of_source == source.name)[0]) for source in sources]
    pairs = list(zip(responses, asked, strict=True))
    told = np.array([response.told(limits.scaled(vector), limits.clamp) for response, vector in pairs])
    expected = limits.unscaled(np.array([r.painted(row) for r, row in zip(responses, told, strict=True)]))
    after = bench.measure(f"painting held-out styles, degree {degree}", told, np.arange(len(measured.masks.sources)))
    names = tuple(source.name for source in sources)
    return _Asked(names, asked, told, expected, measured.sums[own], after)


def _slopes(found: _Asked, held_out: np.ndarray) -> Section:
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


def _own_masks(found: _Asked, masks: Masks) -> Section:
    """The same over each source image's own masks, beside its real windows."""
    values: list[list[np.ndarray]] = [[], [], []]
    for index, name in enumerate(found.names):
        own = np.flatnonzero(~masks.without(name))
        crops = masks.crops[torch.from_numpy(own).to(masks.crops.device), RGB].permute(0, 2, 3, 1).cpu().numpy()
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


def _styles_table(names: Sequence[str], kinds: dict[str, np.ndarray]) -> list[Row]:
    """A row for each style and kind of its six numbers."""
    return [
        {"style": name, "numbers": kind} | dict(zip(STYLE_NUMBERS, values[index].tolist()))
        for index, name in enumerate(names)
        for kind, values in kinds.items()
    ]


def _sources(bench: _Bench, sources: Sequence[Source], found: _Asked, report: Report) -> Section:
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


def _shown(bench: _Bench, sources: Sequence[Source], told: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Real windows of sources; below them one mask in the style of each, without the response and with it."""
    masks = bench.masks
    size = masks.crops.shape[-1]
    cells = (masks.crops[:, Plane.CLASSES] > 0).float().mean(dim=(1, 2)).cpu().numpy()[windows]
    one = windows[[int(np.argsort(cells)[len(cells) // 2])]]
    real, before, after = [], [], []
    for source, row in list(zip(sources, told, strict=True))[:SHOWN]:
        own = np.flatnonzero(masks.sources == source.name)
        blank = np.full((size, size, 3), 255, np.uint8)
        real.append(masks.crops[int(own[0]), :3].permute(1, 2, 0).cpu().numpy() if len(own) else blank)
        plain = bench.range.normalise(np.array(source.style.vector))
        before.append(bench.paint(plain, one, source.style.glass_rgb)[0])
        after.append(bench.paint(row, one, source.style.glass_rgb)[0])
    return sheet([np.array(real), np.array(before), np.array(after)])


def _named(bench: _Bench, config: ModelConfig) -> Section:
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


def _command(settings: StainEvaluation) -> dict[str, object]:
    values = asdict(settings)
    paint = values.pop("paint")
    kept = {key: str(value) if isinstance(value, Path) else value for key, value in values.items() if key != "out"}
    return kept | paint
