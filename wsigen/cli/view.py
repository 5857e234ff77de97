"""The command `wsigen view`. Heavy imports stand inside it."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path
from typing import Any

import click

from wsigen.choices import AUTO, DEVICES
from wsigen.cli.display import work_bars
from wsigen.cli.options import PATH, condition_option
from wsigen.errors import SettingsError
from wsigen.masks.origin import ORIGIN_HELP, Origin


@click.command("view")
@click.argument("file", type=PATH, metavar="SLIDE|MASK")
@click.option("--overlay", type=PATH, help="Nuclei to lay over it: a mask, or outlines (GeoJSON, and what imports).")
@click.option("--origin", type=click.Choice([*map(str, Origin)]), default="auto", show_default=True, help=ORIGIN_HELP)
@click.option("--compare", type=PATH, help="Another slide, side by side or under a curtain.")
@click.option("--model", default="", help="Of a mask: name of a shipped model, or folder of one.")
@click.option("--style", help="Of a mask: a style's name, or a picture or slide to measure.")
@condition_option
@click.option("--seed", type=int, help="Of a mask. [default: 0]")
@click.option("--steps", type=click.IntRange(1, 1000), help="Of a mask: denoising steps. [default: the model's]")
@click.option("--device", type=click.Choice([AUTO, *DEVICES]), default="auto", show_default=True)
@click.option("-o", "--out", type=PATH, help='Where "Save as slide" writes. [default: beside the mask]')
@click.option("--port", type=click.IntRange(1, 65535), help="[default: 8642, or any free one]")
@click.option("--lossless", is_flag=True, help="Send PNG tiles: exact, and slower than JPEG.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
def view(
    file: Path,
    overlay: Path | None,
    origin: str,
    compare: Path | None,
    out: Path | None,
    port: int | None,
    lossless: bool,
    no_browser: bool,
    **render: Any,
) -> None:
    """Look at a SLIDE in the browser, or at the slide of a MASK, which is painted where one looks."""
    _require_server()
    from wsigen.config import RenderSettings
    from wsigen.viewer.scene import SceneSettings, open_scene
    from wsigen.viewer.server import HOST, listen, make_server

    listener = listen(port)
    settings = SceneSettings(file, overlay, Origin(origin), compare, out, lossless, RenderSettings(**render))
    with listener:
        with work_bars() as progress:
            scene = open_scene(settings, progress)
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        for note in scene.notes:
            click.echo(note)
        click.echo(f"{file.name} at {address} (Ctrl-C ends)")
        if not no_browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        try:
            make_server(scene).run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        finally:
            scene.close()
    click.echo("stopped")


def _require_server() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"wsigen view needs the package {error.name}, which is not installed: pip install 'wsigen[view]'"
        ) from error
