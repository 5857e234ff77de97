"""The commands that measure: evaluate, audit and study. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsigen.choices import SEAM_METHODS
from wsigen.cli.display import work_bars
from wsigen.cli.options import DEVICE, PATH
from wsigen.diffusion.plans import SAMPLERS


@click.group()
def evaluate() -> None:
    """Measure how good a model or a slide is, and write a report folder."""


@evaluate.command("patches")
@click.option("--data", required=True, type=PATH, help="Training folder; its held-out side is what is compared with.")
@click.option("-o", "--out", required=True, type=PATH, help="Report folder to write.")
@click.option("--model", default="", help="Name of a shipped painter, or folder of one. [default: the shipped one]")
@click.option("--samples", type=PATH, help="An .npz of images and labels to measure in place of a model.")
@click.option("--features", default="colon-features", show_default=True, help="Feature network, name or folder.")
@click.option("--segmenter", default="colon-segmenter", show_default=True, help="Segmentation network.")
@click.option("--count", type=click.IntRange(8), default=1000, show_default=True, help="Patches at most.")
@click.option("--window", type=click.IntRange(32), help="Side of a patch, px. [default: the model's]")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--sampler", type=click.Choice(SAMPLERS))
@click.option("--guidance-scale", type=float, help="1 is off. [default: the model's]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=87, show_default=True, help="Of both sets.")
@click.option("--inception", is_flag=True, help="Also FID, KID and Inception Score over Inception (torch-fidelity).")
@click.option("--inception-weights", help="File of Inception's weights. [default: fetched]")
@click.option("--memorisation/--no-memorisation", default=True, help="Look patches up among the training patches.")
@click.option("--network-steps", type=click.IntRange(1), default=400, show_default=True, help="Of the small network.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
def evaluate_patches(**options: Any) -> None:
    """Compare painted patches with real held-out ones of the same masks."""
    from wsigen.evaluation.material import PaintOptions
    from wsigen.evaluation.patches import PatchEvaluation
    from wsigen.evaluation.patches import evaluate_patches as run

    paint = PaintOptions(**{name: options.pop(name) for name in ("steps", "sampler", "guidance_scale", "seed")})
    with work_bars(f"{options['out']} holds the sections that were done", stay=True) as show:
        report = run(PatchEvaluation(paint=paint, **options), show)
    _conclude(report)


@evaluate.command("slide")
@click.argument("slide", type=PATH)
@click.argument("mask", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="Report folder to write.")
@click.option("--window", type=click.IntRange(32), help="[default: from the record beside the slide]")
@click.option("--overlap", type=click.IntRange(0), help="[default: from the record beside the slide]")
@click.option("--control", type=PATH, help="A real slide, whose seams on the same grid are the control.")
@click.option("--data", type=PATH, help="Training folder, for distances and stain against its held-out side.")
@click.option("--index", type=PATH, help="Index of training patches, for near-copies. [default: ships]")
@click.option("--features", default="colon-features", show_default=True)
@click.option("--segmenter", default="colon-segmenter", show_default=True)
@click.option("--sites", type=click.IntRange(20), default=2000, show_default=True, help="Places along borders.")
@click.option("--count", type=click.IntRange(8), default=1000, show_default=True, help="Patches at most.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
def evaluate_slide(**options: Any) -> None:
    """Measure SLIDE against the MASK that it was painted from: nuclei, seams, stain, near-copies."""
    from wsigen.evaluation.slide import SlideEvaluation
    from wsigen.evaluation.slide import evaluate_slide as run

    with work_bars(f"{options['out']} holds the sections that were done", stay=True) as show:
        report = run(SlideEvaluation(**options), show)
    _conclude(report)


def _conclude(report: Any) -> None:
    from wsigen.evaluation.report import MARKDOWN_FILE

    for section in report.sections:
        for row in section.rows[:3]:
            values = ", ".join(f"{key} {_short(value)}" for key, value in row.items() if value is not None)
            click.echo(f"{section.title.lower()}: {values}")
        for note in section.notes:
            click.echo(f"  {note}")
    click.echo(f"wrote {report.folder / MARKDOWN_FILE}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@evaluate.command("stain")
@click.option("--data", required=True, type=PATH, help="Training folder: masks, and styles of its source images.")
@click.option("-o", "--out", required=True, type=PATH, help="Report folder to write.")
@click.option("--model", default="", help="Name of a shipped painter, or folder of one. [default: the shipped one]")
@click.option("--write", type=PATH, help="Write the response too: to the model's own folder, or to a new copy of it.")
@click.option("--windows", type=click.IntRange(2), default=64, show_default=True, help="Masks that are painted.")
@click.option(
    "--styles", type=int, default=64, show_default=True, help="Of a first round, whose fit chooses those of a second."
)
@click.option("--window", type=click.IntRange(32), help="Side of a window, px. [default: the model's]")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--guidance-scale", type=float, help="1 is off. [default: the model's]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
def evaluate_stain(**options: Any) -> None:
    """Compare the stain that is painted with the stain that is asked for, and fit what mends the difference.

    The response, what the network paints of the stain that it is told, is written to the model's config.json with
    --write. Painting then tells the network what yields the stain that is asked for.
    """
    from wsigen.evaluation.asked_stain.evaluate import StainEvaluation
    from wsigen.evaluation.asked_stain.evaluate import evaluate_stain as run
    from wsigen.evaluation.material import PaintOptions

    paint = PaintOptions(**{name: options.pop(name) for name in ("steps", "guidance_scale", "seed")})
    written = options["write"]
    with work_bars(f"{options['out']} holds the sections that were done; no model was changed", stay=True) as show:
        report = run(StainEvaluation(paint=paint, **options), show)
    _conclude(report)
    if written is not None:
        click.echo(f"wrote the response to {written}; next: wsigen render MASK --model {written}")


@evaluate.command("masks")
@click.argument("real", type=PATH)
@click.argument("sampled", type=PATH, required=False)
@click.option("-o", "--out", required=True, type=PATH, help="Report folder to write.")
@click.option("--model", default="", help="Mask model that samples from the layouts of the real masks.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Samples for each real mask.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--guidance-scale", type=float, help="1 is off. [default: the model's]")
@click.option("--window", type=click.IntRange(32), default=256, show_default=True)
@click.option("--overlap", type=click.IntRange(8), default=32, show_default=True)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
def evaluate_masks(**options: Any) -> None:
    """Compare nuclei of a SAMPLED mask, or of a model, with REAL ones: a training folder's held-out side, or a mask."""
    from wsigen.evaluation.mask_report import MaskEvaluation
    from wsigen.evaluation.mask_report import evaluate_masks as run

    with work_bars(f"{options['out']} holds the sections that were done", stay=True) as show:
        report = run(MaskEvaluation(**options), show)
    _conclude(report)


@evaluate.command("index")
@click.option("--data", required=True, type=PATH, help="Training folder of the painter.")
@click.option("-o", "--out", required=True, type=PATH, help="Folder to write.")
@click.option("--features", default="colon-features", show_default=True)
@click.option("--stride", type=click.IntRange(8), default=64, show_default=True, help="Between training patches, px.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing index.")
def evaluate_index(data: Path, out: Path, features: str, stride: int, device: str, overwrite: bool) -> None:
    """Write features of the training patches, without pixels, for `wsigen audit`."""
    from wsigen.evaluation.memorisation import write_index

    with work_bars("no index was written", stay=True) as show:
        index = write_index(data, out, features, stride, device, overwrite, show)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    click.echo(f"wrote {out}: {len(index.features):,} training patches of {index.window} px, {size:.1f} MB")


@click.command()
@click.argument("slide", type=PATH)
@click.option("--index", type=PATH, help="Folder of `wsigen evaluate index`. [default: the one that ships]")
@click.option("--features", default="colon-features", show_default=True)
@click.option("--count", type=click.IntRange(8), default=2000, show_default=True, help="Patches at most.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
def audit(slide: Path, index: Path | None, features: str, count: int, seed: int, device: str) -> None:
    """Say how many patches of SLIDE are near-copies of training patches, beside real held-out patches."""
    import torch

    from wsigen.evaluation.memorisation import SHIPPED_INDEX, TrainingIndex
    from wsigen.evaluation.slide import audit as run
    from wsigen.evaluation.slides import SlidePixels
    from wsigen.networks.measuring import FeatureNetwork
    from wsigen.system.devices import choose_device

    chosen = torch.device(choose_device(device).device)
    loaded = TrainingIndex.load(index or SHIPPED_INDEX)
    network = FeatureNetwork.from_pretrained(features).to(chosen)
    with SlidePixels(slide) as pixels:
        found = run(pixels, loaded, network, chosen, count, seed)
    click.echo(f"{slide}: {found.patches} tissue patches of {loaded.window} px against {len(loaded.features):,}")
    click.echo(
        f"near-copies of training patches: {found.share:.1%} (real held-out patches: {found.held_out_share:.1%})"
    )
    click.echo(f"median distance: {found.median:.3f} (real held-out patches: {found.held_out_median:.3f})")


@click.group()
def study() -> None:
    """Experiments on what painted slides are good for."""


@study.command("segmentation")
@click.argument("recipe", type=PATH)
@click.option("--data", required=True, type=PATH, help="Training folder.")
@click.option("-o", "--out", required=True, type=PATH, help="Folder of the study.")
@click.option("--model", default="", help="Painter. [default: the shipped one]")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True)
@click.option("--painted", type=click.IntRange(1), default=4000, show_default=True, help="Painted patches an arm.")
@click.option(
    "--window", type=click.IntRange(32), default=128, show_default=True, help="Side of painted and of test patches, px."
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Networks trained side by side.")
@click.option("--compile/--no-compile", "compile_model", default=None, help="torch.compile. [default: on a GPU]")
@click.option("--resume", is_flag=True, help="Continue the study in the folder.")
def study_segmentation(recipe: Path, steps: int | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Train the segmenter of RECIPE on real, painted and both; test on held-out real pictures."""
    from wsigen.evaluation.material import PaintOptions
    from wsigen.evaluation.study import Study
    from wsigen.evaluation.study import study_segmentation as run
    from wsigen.models.registry import DEFAULT_MODEL
    from wsigen.training.settings import load_settings

    options["model"] = options["model"] or DEFAULT_MODEL
    settings = Study(recipe=load_settings(recipe, overrides), paint=PaintOptions(steps=steps), **options)
    kept = f"finished runs are kept in {options['out']}: the same command with --resume goes on"
    with work_bars(kept, stay=True) as show:
        report = run(settings, show)
    _conclude(report)


@study.command("seams")
@click.argument("mask", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="Report folder to write.")
@click.option("--model", default="", help="Painter. [default: the shipped one]")
@click.option("--size", type=click.IntRange(64), default=2048, show_default=True, help="Side of the area, px.")
@click.option("--overlap", type=int, help="Pixels that neighbouring windows share. [default: the model's]")
@click.option(
    "--method",
    "methods",
    type=click.Choice(SEAM_METHODS),
    multiple=True,
    help="[default: all]",
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
def study_seams(mask: Path, out: Path, model: str, **options: Any) -> None:
    """Paint an area of MASK by windows with context, blended and cut, and in other ways; measure the seams of each."""
    from wsigen.evaluation.baselines import study_seams as run
    from wsigen.models.registry import DEFAULT_MODEL

    with work_bars(f"{out} holds no table yet", stay=True) as show:
        report = run(mask, out, model or DEFAULT_MODEL, progress=show, **options)
    _conclude(report)
