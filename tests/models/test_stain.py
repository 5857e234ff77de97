"""Stain styles: optical density, what counts as tissue, and measuring pictures on disk."""

import numpy as np
import pytest
import pyvips

from wsigen.errors import ModelError, SlideError
from wsigen.models.stain import (
    StainStyle,
    StyleRange,
    measure_style,
    measure_style_file,
    optical_density,
    tissue_from_density,
)

TISSUE = np.array((170, 90, 160), np.uint8)
GLASS = np.array((243, 242, 244), np.uint8)


def picture(side=256):
    """Tissue of one colour with darker rows in its upper half, glass below."""
    rgb = np.empty((side, side, 3), np.uint8)
    rgb[: side // 2], rgb[side // 2 :] = TISSUE, GLASS
    rgb[: side // 2 : 2] = TISSUE // 2
    return rgb


def test_optical_density_follows_beer_and_lambert():
    values = np.array([[255, 127, 0]], np.uint8)
    density = optical_density(values)
    assert density.dtype == np.float32
    np.testing.assert_allclose(density[0], [0.0, -np.log10(128 / 256), np.log10(256)], atol=1e-6)
    assert np.all(np.diff(optical_density(np.arange(256, dtype=np.uint8))) < 0)


def test_a_style_is_the_mean_and_deviation_of_tissue_alone():
    rgb = picture()
    style = measure_style(rgb, tissue_from_density(rgb) == 0, "synthetic")
    bright, dark = (-np.log10((colour + 1.0) / 256) for colour in (TISSUE.astype(float), TISSUE // 2))
    np.testing.assert_allclose(style.vector[:3], (bright + dark) / 2, atol=1e-5)
    np.testing.assert_allclose(style.vector[3:], (dark - bright) / 2, atol=1e-5)
    assert style.glass_rgb == tuple(GLASS)
    assert style.name == "synthetic"


def test_unknown_pixels_do_not_count():
    rgb = picture()
    known = np.ones(rgb.shape[:2], bool)
    known[:40] = False
    black = rgb.copy()
    black[~known] = 0
    glass = tissue_from_density(black, known=known) == 0
    measured = measure_style(black, glass, "s", known)
    np.testing.assert_allclose(measured.vector, measure_style(rgb, glass, "s").vector, atol=1e-5)


def test_too_little_tissue_is_refused_with_the_count():
    rgb = np.broadcast_to(GLASS, (200, 200, 3)).copy()
    rgb[:50, :50] = TISSUE
    with pytest.raises(ModelError, match=r"only 2500 pixels look like tissue.*10000"):
        measure_style(rgb, np.ones((200, 200), bool), "pale")


def test_a_picture_without_glass_gets_a_neutral_white():
    rgb = np.broadcast_to(TISSUE, (128, 128, 3)).copy()
    assert measure_style(rgb, np.zeros((128, 128), bool), "full").glass_rgb == StainStyle("").glass_rgb


def test_tissue_and_glass_are_told_apart_by_density():
    rgb = picture()
    tissue = tissue_from_density(rgb)
    assert tissue.dtype == np.uint8
    assert tissue[:120].all() and not tissue[145:].any()


def test_small_specks_do_not_change_tissue_but_nuclei_and_unknown_pixels_do():
    rgb = picture()
    rgb[200:206, 100:106] = TISSUE  # dust on the glass
    rgb[50:60, 50:60] = GLASS  # a vacuole in the tissue
    nuclei, known = np.zeros(rgb.shape[:2], bool), np.ones(rgb.shape[:2], bool)
    plain = tissue_from_density(rgb)
    assert not plain[203, 103] and plain[55, 55]
    nuclei[200:206, 100:106] = True
    assert tissue_from_density(rgb, nuclei)[203, 103]
    known[220:, 200:] = False
    assert tissue_from_density(rgb, known=known)[225:, 205:].all()


def test_a_picture_that_is_all_tissue_or_all_glass():
    assert tissue_from_density(np.broadcast_to(TISSUE, (64, 64, 3)).copy()).all()
    assert not tissue_from_density(np.broadcast_to(GLASS, (64, 64, 3)).copy()).any()


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_a_picture_on_disk_gives_the_style_of_its_pixels(tmp_path, ending):
    path = tmp_path / f"reference.{ending}"
    rgb = picture()
    options = {"lossless": True} if ending == "webp" else {}
    pyvips.Image.new_from_array(rgb).write_to_file(str(path), **options)
    style = measure_style_file(path)
    assert style == measure_style(rgb, tissue_from_density(rgb) == 0, "reference")


def test_a_pyramidal_tiff_is_sampled_as_a_slide(tmp_path):
    path = tmp_path / "slide.tif"
    image = pyvips.Image.new_from_array(np.tile(picture(512), (2, 2, 1)))
    image.write_to_file(str(path), tile=True, pyramid=True, compression="deflate")
    style = measure_style_file(path)
    np.testing.assert_allclose(style.vector, measure_style_file_of(picture(512), tmp_path), atol=0.01)


def measure_style_file_of(rgb, folder):
    pyvips.Image.new_from_array(rgb).write_to_file(str(folder / "plain.png"))
    return measure_style_file(folder / "plain.png").vector


def test_a_missing_reference_is_refused(tmp_path):
    with pytest.raises(SlideError, match=r"nowhere\.svs: no such style reference"):
        measure_style_file(tmp_path / "nowhere.svs")


def test_a_text_file_is_no_picture(tmp_path):
    path = tmp_path / "style.png"
    path.write_text("violet, please")
    with pytest.raises(SlideError, match=r"style\.png cannot be read as a picture or a slide") as caught:
        measure_style_file(path)
    assert "\n" not in str(caught.value)


def test_a_picture_of_glass_is_refused_by_name(tmp_path):
    pyvips.Image.new_from_array(np.broadcast_to(GLASS, (128, 128, 3)).copy()).write_to_file(str(tmp_path / "glass.png"))
    with pytest.raises(ModelError, match=r"glass\.png: only 0 pixels"):
        measure_style_file(tmp_path / "glass.png")


def test_styles_are_normalised_to_the_training_range():
    styles = StyleRange()
    mean, std = np.array(styles.mean), np.array(styles.std)
    np.testing.assert_allclose(styles.normalise(mean + std), 1.0, atol=1e-6)
    np.testing.assert_allclose(styles.normalise(np.stack([mean - 99 * std, mean + 99 * std])), [[-2.5] * 6, [2.5] * 6])
    assert styles.normalise(mean).dtype == np.float32


def test_a_style_needs_six_values():
    data = StainStyle("short").to_config()
    assert StainStyle.from_config(data) == StainStyle("short")
    with pytest.raises(ModelError, match="'short' needs 6 vector values"):
        StainStyle.from_config({**data, "vector": [0.1] * 5})
