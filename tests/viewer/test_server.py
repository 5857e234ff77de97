"""The server answers in bounds: errors are JSON of one line, paths and other sites get nowhere."""

import io
import socket
import time

import numpy as np
import openslide
import pytest
from PIL import Image
from served import eventually, read_all, serving

from wsigen.errors import MaskError, SettingsError, SlideError
from wsigen.viewer.scene import SceneSettings, open_scene
from wsigen.viewer.server import listen


@pytest.fixture
def live(own_mask, painting):
    with serving(SceneSettings(own_mask, render=painting)) as served:
        yield served


@pytest.fixture(scope="module")
def finished(rendered, demo_mask):
    with serving(SceneSettings(rendered[0], overlay=demo_mask, compare=rendered[0])) as served:
        yield served


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_finished_slide_and_its_mask(finished, rendered, demo_mask):
    scene = finished.json("/api/scene")
    slide, other = scene["pictures"]
    assert slide["levels"][0] == [600, 500] and slide["mpp"] == 0.5 and slide["synthetic"]
    assert other["id"] == "other" and other["place"] == {"x": 0, "y": 0, "scale": 1}
    (overlay,) = scene["overlays"]
    assert sum(entry["count"] for entry in overlay["classes"]) == len(np.unique(read_all(demo_mask).instances)) - 1
    status, content, headers = finished.get("/tiles/slide/0/1_0.png")
    with openslide.OpenSlide(rendered[0]) as opened:
        expected = np.asarray(opened.read_region((256, 0), 0, (256, 256)))[..., :3]
    assert status == 200 and headers["x-painted"] == "1" and np.array_equal(picture(content), expected)
    assert picture(finished.get("/tiles/slide/1/0_0.jpg")[1]).shape == (250, 256, 3)
    assert finished.get("/api/events")[0] == 404, "nothing is painted"


BAD = [
    ("/tiles/slide/0/3_0.jpg", 404),
    ("/tiles/slide/9/0_0.jpg", 404),
    ("/tiles/slide/0/-1_0.jpg", 400),
    ("/tiles/slide/0/1e3_0.jpg", 400),
    ("/tiles/slide/" + "9" * 5000 + "/0_0.jpg", 400),
    ("/tiles/slide/0/0_0.bmp", 404),
    ("/tiles/nothing/0/0_0.jpg", 404),
    ("/tiles/%2e%2e%2f%2e%2e/0/0_0.jpg", 404),
    ("/page/../../../pyproject.toml", 404),
    ("/page/%2e%2e/%2e%2e/pyproject.toml", 404),
    ("/page//etc/passwd", 404),
    ("/overlays/overlay/0/0_0.png?mode=paint", 400),
    ("/overlays/overlay/0/0_0.png?show=a", 400),
    ("/overlays/overlay/0/0_0.png?show=" + "1," * 3000, 400),
    ("/overlays/none/0/0_0.png", 404),
    ("/api/nucleus/overlay?x=600&y=0", 404),
    ("/api/nucleus/overlay?x=1", 400),
    ("/api/nucleus/overlay?x=٣&y=1", 400),
    ("/api/look", 405),
    ("/anything", 404),
]


@pytest.mark.parametrize(("path", "status"), BAD)
def test_bad_addresses_are_one_line_of_json(finished, path, status):
    from urllib.parse import quote

    got, content, headers = finished.get(quote(path, safe="/?=&%,"))
    assert got == status
    assert headers["content-type"] == "application/json"
    assert b"Traceback" not in content and b'"error"' in content and len(content) < 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"nonsense",
        b"[" * 3000,
        {"x": 1},
        {"session": "s", "x": 1.5, "y": 0, "width": 1, "height": 1},
        {"session": "s", "x": 1 << 40, "y": 0, "width": 1, "height": 1},
        {"session": "s", "x": True, "y": 0, "width": 1, "height": 1},
    ],
)
def test_bad_bodies_are_refused(live, body):
    status, answer = live.post("/api/look", body)
    assert status == 400 and "error" in answer


def test_bodies_settings_and_sessions_have_bounds(live):
    assert live.post("/api/look", b" " * 5000)[0] == 413
    assert live.post("/api/look", {"session": "s", "x": 0, "y": 0, "width": 1, "height": 1})[0] == 404
    for wrong in (
        {"steps": 5000},
        {"seed": -1},
        {"conditions": {"stain": "/etc/passwd"}},
        {"conditions": {"stain": ["violet"]}},
        {"conditions": {"no": ""}},
        {"conditions": []},
        {"seed": None},
    ):
        assert live.post("/api/settings", {"seed": 1, "steps": 2, "conditions": {"stain": "violet"}, **wrong})[0] == 400
    assert (
        live.post(
            "/api/settings",
            {"seed": 1, "steps": 2, "conditions": {"stain": "violet"}},
            **{"Content-Type": "text/plain"},
        )[0]
        == 400
    )
    assert live.post("/api/save/stop", {})[0] == 409


def test_other_hosts_and_other_sites_are_refused(live):
    assert live.get("/api/scene", headers={"Host": "evil.example"})[0] == 403
    site = {"Origin": "http://evil.example"}
    assert live.post("/api/settings", {"seed": 1, "steps": 2, "conditions": {"stain": "violet"}}, **site)[0] == 403
    assert live.post("/api/save", {}, Origin="null")[0] == 403
    own = {"Origin": live.address}
    assert live.post("/api/settings", {"seed": 1, "steps": 2, "conditions": {"stain": "violet"}}, **own)[0] == 200


def test_only_this_machine_is_listened_to():
    with listen(None) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_slow_painter_does_not_delay_a_tile(live):
    with live.events() as events:
        look = {"session": events.session, "x": 0, "y": 0, "width": 600, "height": 500}
        assert live.post("/api/look", look)[0] == 200
        eventually(lambda: live.scene.live.state == "painting", 10)
        started = time.monotonic()
        status, _, headers = live.get("/tiles/live/0/2_1.jpg")
        assert status == 200 and headers["x-painted"] == "0" and headers["cache-control"] == "no-store"
        assert time.monotonic() - started < 1


def test_a_closed_stream_ends_its_session(live):
    with live.events() as events:
        assert len(live.scene.live.sessions) == 1
        assert events.next("status")["windows"] == 0
    eventually(lambda: not live.scene.live.sessions, 5, "the session ends")


def test_too_many_pages_are_refused(live):
    from contextlib import ExitStack

    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(live.events())
        assert live.get("/api/events")[0] == 503


def test_painted_tiles_come_exact_and_are_announced(live, rendered):
    with live.events() as events:
        live.post("/api/look", {"session": events.session, "x": 100, "y": 100, "width": 200, "height": 150})
        while (status := events.next("status"))["painted"] < max(status["windows"], 1):
            pass
        content, headers = live.get("/tiles/live/0/0_0.png")[1:]
        assert headers["x-painted"] == "1" and np.array_equal(picture(content), rendered[1][:256, :256])


def test_save_renders_what_is_shown(live, own_mask, rendered):
    status, answer = live.post("/api/save", {})
    assert status == 200 and answer["name"] == "mask-violet-seed4.svs"
    assert live.post("/api/save", {})[0] == 409, "one at a time"
    with live.events() as events:
        while (save := events.next("status")["save"])["state"] == "running":
            pass
    assert (save["state"], save["painted"], save["rows"]) == ("done", save["windows"], 500), save
    out = own_mask.with_name("mask-violet-seed4.svs")
    with openslide.OpenSlide(out) as a, openslide.OpenSlide(rendered[0]) as b:
        regions = [np.asarray(slide.read_region((0, 0), 0, (600, 500))) for slide in (a, b)]
    assert np.array_equal(*regions)
    status, answer = live.post("/api/save", {})
    assert status == 409 and "exists" in answer["error"], "nothing is overwritten"


def test_a_stopped_save_leaves_no_slide_and_goes_on_later(live, own_mask):
    live.post("/api/save", {})
    eventually(lambda: live.scene.saving.status["painted"] > 0)
    assert live.post("/api/save/stop", {})[0] == 200
    eventually(lambda: not live.scene.saving.running)
    out = own_mask.with_name("mask-violet-seed4.svs")
    assert live.scene.saving.status["state"] == "stopped" and not out.exists()
    assert live.post("/api/save", {})[0] == 200
    eventually(lambda: not live.scene.saving.running)
    assert live.scene.saving.status["state"] == "done", live.scene.saving.status
    assert out.exists()


def test_files_that_cannot_be_shown_are_refused_at_the_start(tmp_path, rendered, demo_mask, painting):
    for settings, error in (
        (SceneSettings(tmp_path / "no.svs"), SlideError),
        (SceneSettings(rendered[0], overlay=tmp_path / "no.tif"), MaskError),
        (SceneSettings(rendered[0], compare=demo_mask), SettingsError),
        (SceneSettings(rendered[0].with_suffix(".json")), SlideError),
    ):
        with pytest.raises(error):
            open_scene(settings)


def test_a_taken_port_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--port {port}"):
            listen(port)
        listen(None).close()
