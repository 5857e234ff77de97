"""The page in a real browser: tiles arrive and change, overlay, scale, comparison, clicks and keys; no errors."""

import base64
import io
import time

import numpy as np
import openslide
import pytest
from PIL import Image
from served import eventually, read_all, serving, with_new_nucleus, write_mask

from wsigen.viewer.scene import SceneSettings


@pytest.fixture(scope="module")
def finished(rendered, demo_mask):
    with serving(SceneSettings(rendered[0], overlay=demo_mask, compare=rendered[0], lossless=True)) as served:
        yield served


class Page:
    """The page in the browser."""

    def __init__(self, browser) -> None:
        self.browser = browser

    def open(self, address: str) -> None:
        self.browser.get_log("browser")
        self.browser.get(address)
        eventually(lambda: self.js("return !!window.wsigen?.stage.left.world.getItemCount()"), what="the page opens")

    def js(self, script: str, *arguments: object) -> object:
        return self.browser.execute_script(script, *arguments)

    def find(self, name: str):
        return self.browser.find_element("id", name)

    def settle(self) -> None:
        """Wait until all tiles are there and nothing moves."""
        self.js("for (const one of wsigen.stage.viewers) one.viewport.applyConstraints(true)")
        eventually(
            lambda: self.js(
                "return wsigen.stage.viewers.every((v) => { for (let i = 0; i < v.world.getItemCount(); i++)"
                " { const item = v.world.getItemAt(i);"
                " if (item.getOpacity() > 0 && !item.getFullyLoaded()) return false }"
                " return v.viewport.getZoom(true) === v.viewport.getZoom() })"
            ),
            what="tiles are loaded",
        )
        time.sleep(0.3)

    def show(self, x: int, y: int, side: str = "left") -> None:
        """One pixel of the slide to a pixel of the screen, with pixel (x, y) in the upper left corner."""
        self.js(
            "const v = wsigen.stage[arguments[2]].viewport, c = v.getContainerSize();"
            "const w = wsigen.stage.first.levels[0][0];"
            "v.fitBounds(new OpenSeadragon.Rect(arguments[0] / w, arguments[1] / w, c.x / w, c.y / w), true)",
            x, y, side,
        )  # fmt: skip
        self.settle()

    def canvas(self, viewer: str = "stage.left") -> np.ndarray:
        """What the browser has drawn: uint8 (h, w, 4)."""
        url = self.js(f"return wsigen.{viewer}.drawer.canvas.toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]


@pytest.fixture
def page(chromium):
    page = Page(chromium)
    yield page
    errors = page.errors()
    page.browser.get("about:blank")
    assert not errors


def shown(page: Page, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Pixels (x, y, width, height) of the slide as the browser draws them at 1:1, uint8 (h, w, 3)."""
    page.show(x, y)
    return page.canvas()[:height, :width, :3]


def test_a_finished_slide_is_there_at_once(page, finished):
    def seconds() -> float:
        started = time.monotonic()
        page.open(finished.address)
        eventually(lambda: page.canvas()[..., 3].any(), 10)
        return time.monotonic() - started

    assert any(seconds() < 3 for _ in range(3)), "other tests run meanwhile; alone it takes less than one"
    page.settle()
    assert page.find("name").text == "s.svs" and page.find("synthetic").is_displayed()
    assert not page.find("painting").is_displayed()


def test_the_browser_shows_the_pixels_of_the_slide(page, finished, rendered):
    page.open(finished.address)
    page.js("wsigen.overlays.draw('off')")
    with openslide.OpenSlide(rendered[0]) as slide:
        expected = np.asarray(slide.read_region((0, 0), 0, (600, 400)))[..., :3]
    assert np.array_equal(shown(page, 0, 0, 600, 400), expected)


def test_the_overlay_switches_modes_classes_and_opacity(page, finished, demo_mask):
    page.open(finished.address)
    content = read_all(demo_mask)
    page.js("wsigen.overlays.draw('off')")
    plain = shown(page, 0, 0, 600, 400)
    page.browser.find_element("css selector", "[data-mode=fill]").click()
    page.js("wsigen.overlays.fade(1)")
    filled = shown(page, 0, 0, 600, 400)
    nuclei = content.classes[:400, :600]
    assert np.array_equal((filled != plain).any(axis=2), nuclei > 0)
    assert tuple(filled[nuclei == 2][0]) == (60, 180, 75)
    page.js("document.querySelector('#legend input[data-index=\"2\"]').click()")
    page.settle()
    fewer = page.canvas()[:400, :600, :3]
    assert np.array_equal((fewer != plain).any(axis=2), (nuclei > 0) & (nuclei != 2))
    page.browser.find_element("css selector", "[data-mode=outline]").click()
    page.settle()
    outlined = (page.canvas()[:400, :600, :3] != plain).any(axis=2)
    assert 0 < outlined.sum() < (nuclei > 0).sum() and not outlined[nuclei == 0].any()
    page.find("show-none").click()
    page.settle()
    assert np.array_equal(page.canvas()[:400, :600, :3], plain)
    counts = [row.text.split() for row in page.browser.find_elements("css selector", "#legend li")]
    epithelial = len(np.unique(content.instances[content.classes == 2]))
    total = len(np.unique(content.instances[content.classes > 0]))
    assert counts[1] == ["epithelial", str(epithelial)] and page.find("total").text == f"{total} nuclei"


@pytest.mark.parametrize("zoom", [0.5, 1, 3.7])
def test_the_scale_bar_is_as_long_as_it_says(page, finished, zoom):
    page.open(finished.address)
    page.js("wsigen.measure.zoomToPixels(arguments[0])", 1 / zoom)
    page.settle()
    width, um = page.js(
        "const bar = document.getElementById('scale-bar');"
        "return [bar.getBoundingClientRect().width, Number(bar.dataset.um)]"
    )
    # Two points of the slide that are so far apart, and where the browser draws them.
    left, right = page.js(
        "const v = wsigen.stage.left.viewport, w = wsigen.stage.first.levels[0][0];"
        "return [0, arguments[0] / 0.5].map((px) => v.pixelFromPoint(new OpenSeadragon.Point(px / w, 0), true).x)",
        um,
    )
    assert width == pytest.approx(right - left, abs=0.5)
    assert page.find("scale-text").text == f"{um:g} µm"


def test_magnification_buttons(page, finished):
    page.open(finished.address)
    for button in page.browser.find_elements("css selector", "#magnifications button"):
        button.click()
        page.settle()
        assert page.find("magnification-now").text == button.text
        um = 0.5 * page.js("return wsigen.measure.pixels()")
        assert um == pytest.approx(10 / float(button.text[:-1]), rel=1e-3)


def test_a_click_says_class_id_and_area(page, finished, demo_mask):
    from selenium.webdriver.common.action_chains import ActionChains

    content = read_all(demo_mask)
    y, x = np.argwhere((content.classes == 3)[150:350, 200:400])[40] + (150, 200)
    page.open(finished.address)
    page.show(0, 0)
    stage = page.find("left")
    size = stage.size
    across, down = int(x) - size["width"] // 2, int(y) - size["height"] // 2
    ActionChains(page.browser).move_to_element_with_offset(stage, across, down).click().perform()
    eventually(lambda: page.find("nucleus").is_displayed(), 5)
    text = page.find("nucleus").text
    number = content.instances[y, x]
    area = (content.instances == number).sum() * 0.25
    assert (
        "lymphocyte" in text and str(number) in text and f"{area + 1e-9:.1f} µm²" in text
    )  # halves up, as the browser has it
    assert f"x {x}" in page.find("position").text.replace("\N{NO-BREAK SPACE}", " ")
    assert page.js("return document.querySelectorAll('.outlined path').length") == 1


def test_two_views_move_in_step(page, finished):
    page.open(finished.address)
    page.browser.find_element("css selector", "[data-compare=side]").click()
    page.settle()
    page.js("wsigen.measure.show(20); wsigen.stage.left.viewport.panTo(new OpenSeadragon.Point(0.4, 0.3))")
    page.settle()

    def apart() -> float:
        return page.js(
            "const [a, b] = [wsigen.stage.left, wsigen.compare.right].map((v) => v.viewport.getBounds(true));"
            "return Math.max(...['x', 'y', 'width', 'height'].map((key) => Math.abs(a[key] - b[key])))"
        )

    assert apart() < 1e-6
    left, right = page.canvas(), page.canvas("compare.right")
    page.js("wsigen.overlays.draw('off')")
    page.settle()
    left = page.canvas()
    assert np.array_equal(left, right), "the same slide twice"
    page.js("wsigen.compare.leader = wsigen.compare.right; wsigen.compare.right.viewport.zoomBy(2, null, true)")
    time.sleep(0.3)
    assert apart() < 1e-6
    page.browser.find_element("css selector", "[data-compare=curtain]").click()
    page.settle()
    assert apart() < 1e-6
    sizes = page.js("return ['left', 'right', 'stage'].map((id) => document.getElementById(id).clientWidth)")
    assert len(set(sizes)) == 1
    page.js(
        "const s = document.getElementById('compare-with'); s.value = 'overlay'; s.dispatchEvent(new Event('change'))"
    )
    page.settle()
    assert not np.array_equal(page.canvas(), page.canvas("compare.right"))


def test_keys(page, finished):
    from selenium.webdriver.common.keys import Keys

    page.open(finished.address)
    body = page.browser.find_element("tag name", "body")
    mode = page.js("return wsigen.overlays.mode")
    body.send_keys("o")
    assert page.js("return wsigen.overlays.mode") != mode
    body.send_keys("2")
    page.settle()
    assert page.find("magnification-now").text == "10×"
    centre = page.js("return wsigen.stage.left.viewport.getCenter().x")
    body.send_keys(Keys.ARROW_RIGHT)
    assert page.js("return wsigen.stage.left.viewport.getCenter().x") > centre
    body.send_keys("c")
    assert page.find("right").is_displayed()
    body.send_keys("m")
    assert not page.find("panel").is_displayed()
    body.send_keys("?")
    assert page.find("help").is_displayed()
    body.send_keys(Keys.ESCAPE)
    body.send_keys("f")
    eventually(lambda: page.js("return !!document.fullscreenElement"), 5, "full screen")
    page.js("return document.exitFullscreen()")


def test_a_picture_of_what_is_shown(page, finished, tmp_path):
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.open(finished.address)
    page.settle()
    page.find("screenshot").click()
    path = eventually(lambda: next(tmp_path.glob("*.png"), None), 10, "the picture is saved")
    picture = np.asarray(Image.open(path))
    width, height = page.js("const s = document.getElementById('stage'); return [s.clientWidth, s.clientHeight]")
    assert picture.shape[:2] == (height, width) and len(np.unique(picture.reshape(-1, 4), axis=0)) > 1000


def painted(page: Page) -> bool:
    return page.find("state").text == "painted"


def test_a_mask_is_painted_while_one_looks_and_repainted_when_it_changes(page, own_mask, painting, rendered):
    with serving(SceneSettings(own_mask, render=painting, lossless=True)) as served:
        page.open(served.address)
        eventually(lambda: "preview" in page.find("state").text, 10)
        eventually(lambda: painted(page), what="the slide is painted")
        assert np.array_equal(shown(page, 0, 0, 600, 400), rendered[1][:400])

        page.js(
            "const seed = document.getElementById('seed'); seed.value = 11; seed.dispatchEvent(new Event('change'))"
        )
        eventually(lambda: page.js("return wsigen.stage.live.current.seed") == 11)
        eventually(lambda: painted(page), what="another seed is painted")
        other = shown(page, 0, 0, 600, 400)
        assert not np.array_equal(other, rendered[1][:400])

        before = served.scene.live.view.slide.painter
        count = int(page.js("return document.querySelector('#legend b').textContent"))
        write_mask(own_mask, with_new_nucleus(read_all(own_mask), 430, 300))
        eventually(lambda: served.scene.live.view.overlay.revision == 1)
        eventually(lambda: served.scene.live.view.slide.painter is not before)
        eventually(lambda: page.js("return document.querySelector('#legend b').textContent") == str(count + 1))
        page.js("wsigen.stage.left.viewport.goHome(true)")
        eventually(lambda: painted(page), what="the changed mask is painted")
        painter = served.scene.live.view.slide.painter
        assert 0 < painter.painted < 0.4 * served.scene.live.view.plan.occupied.sum()
        again = shown(page, 0, 0, 600, 400)
        exact = painter.at_hand(0, 0, 600, 400)[0]
        assert np.array_equal(again, exact) and not np.array_equal(again, other)
        assert np.array_equal(again[:, :200], other[:, :200]), "what is far from the change stays"

        page.find("save").click()
        eventually(lambda: "wrote mask-violet-seed11.svs" in page.find("saving-text").text, what="the slide is saved")
        assert own_mask.with_name("mask-violet-seed11.svs").exists()
        eventually(lambda: page.find("notice").is_displayed(), 5)
    page.browser.get("about:blank")
    page.errors()  # of the connection that was closed from the other end


def test_leaving_the_page_cancels_its_painting(page, own_mask, painting):
    with serving(SceneSettings(own_mask, render=painting)) as served:
        page.open(served.address)
        eventually(lambda: served.scene.live.sessions)
        page.browser.get("about:blank")
        eventually(lambda: not served.scene.live.sessions, 10, "the session ends with the page")
        eventually(served.scene.live.idle, 10)
