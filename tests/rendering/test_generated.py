"""A slide that does not exist reads like the one that a render writes."""

import numpy as np
import openslide
import pytest
from openslide.deepzoom import DeepZoomGenerator

import wsigen
from wsigen.errors import SettingsError
from wsigen.painting.canvas import Canvas
from wsigen.slides.pyramid import halve


@pytest.fixture(scope="module")
def rendered(tiny_model, demo_mask_path, tmp_path_factory):
    """Level 0 before JPEG, from the canvas of a real render."""
    out = tmp_path_factory.mktemp("rendered") / "s.svs"
    wsigen.render(demo_mask_path, out, model=str(tiny_model), device="cpu", seed=4, keep_canvas=True)
    canvas = Canvas.open(out.with_name("s.svs.canvas"))
    return out, canvas.read_region(0, 0, 600, 500, require=True)[0]


@pytest.fixture(scope="module")
def generated(tiny_model, demo_mask_path):
    with wsigen.open_generated(demo_mask_path, model=str(tiny_model), device="cpu", seed=4) as slide:
        yield slide


def test_regions_have_the_pixels_of_the_render(generated, rendered):
    region = generated.read_region((130, 210), 0, (150, 90))
    assert region.mode == "RGBA"
    assert np.array_equal(np.asarray(region)[..., :3], rendered[1][210:300, 130:280])


def test_levels_are_fixed_2x2_means(generated, rendered):
    expected = rendered[1]
    with openslide.OpenSlide(rendered[0]) as slide:
        assert generated.level_dimensions == slide.level_dimensions
        assert generated.level_downsamples == pytest.approx(slide.level_downsamples, rel=0.01)
    for level in range(generated.level_count):
        pixels = np.asarray(generated.read_region((0, 0), level, generated.level_dimensions[level]))
        assert np.array_equal(pixels[..., :3], expected) and (pixels[..., 3] == 255).all()
        expected = halve(expected)


def test_outside_the_slide_is_transparent(generated):
    pixels = np.asarray(generated.read_region((-10, 490), 0, (40, 30)))
    assert (pixels[:10, 10:, 3] == 255).all()
    assert (pixels[:, :10] == 0).all() and (pixels[10:] == 0).all()
    with pytest.raises(SettingsError, match="levels 0 to"):
        generated.read_region((0, 0), 9, (10, 10))


def test_tiles_say_whether_they_are_painted(tiny_model, demo_mask_path, rendered):
    with wsigen.open_generated(demo_mask_path, model=str(tiny_model), device="cpu", seed=4) as slide:
        assert not slide.tile_is_painted(0, 1, 1) and not slide.tile_is_painted(1, 0, 0)
        tile = slide.paint_tile(0, 1, 1)
        assert np.array_equal(tile, rendered[1][256:500, 256:512])
        assert slide.tile_is_painted(0, 1, 1) and not slide.tile_is_painted(1, 0, 0)
        with pytest.raises(InterruptedError):
            slide.paint_tile(1, 0, 0, cancelled=lambda: True)
        slide.paint_tile(1, 0, 0)
        assert slide.tile_is_painted(1, 0, 0)
        with pytest.raises(SettingsError, match="outside"):
            slide.paint_tile(0, 9, 0)


def test_tools_that_take_an_openslide_object_take_it(generated):
    assert isinstance(generated, openslide.AbstractSlide)
    assert float(generated.properties[openslide.PROPERTY_NAME_MPP_X]) == 0.5
    assert generated.properties["wsigen.seed"] == "4"
    assert set(generated.associated_images) == {"label"}
    assert generated.get_thumbnail((100, 100)).size == (100, 83)
    zoom = DeepZoomGenerator(generated, tile_size=254, overlap=1)
    assert zoom.get_tile(zoom.level_count - 1, (0, 0)).size == (255, 255)


def test_a_mask_is_recognised(demo_mask_path, rendered):
    assert wsigen.rendering.on_demand.GeneratedSlide.detect_format(demo_mask_path) == "wsigen"
    assert wsigen.rendering.on_demand.GeneratedSlide.detect_format(rendered[0].with_suffix(".json")) is None
