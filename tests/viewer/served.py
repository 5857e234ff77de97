"""A scene behind the real server, asked by plain HTTP; masks to change."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.viewer.scene import Scene, SceneSettings, open_scene
from wsigen.viewer.server import listen, make_server


def read_all(path: Path) -> MaskWindow:
    with SlideMask.open(path, 6) as mask:
        return mask.read(0, 0, mask.width, mask.height)


def write_mask(path: Path, content: MaskWindow) -> None:
    height, width = content.shape
    write_slide_mask(
        path, width, height, 0.5, [content], content.instances is not None, content.tissue is not None, True
    )


def with_new_nucleus(content: MaskWindow, x: int, y: int) -> MaskWindow:
    """Another nucleus of 9 x 9 px, and all ids numbered anew, as another import would."""
    classes, instances = content.classes.copy(), content.instances.astype(np.uint32)
    instances[instances > 0] = instances.max() + 1 - instances[instances > 0]
    classes[y : y + 9, x : x + 9] = 1
    instances[y : y + 9, x : x + 9] = instances.max() + 1
    return MaskWindow(classes, instances, content.tissue)


def eventually(condition: Callable[[], object], seconds: float = 40, what: str = "") -> object:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


@dataclass
class Served:
    """A scene and the address of its server."""

    scene: Scene
    address: str

    def get(self, path: str, **options: object) -> tuple[int, bytes, dict[str, str]]:
        """Status, body, and headers in lower case."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + path, **options), timeout=30) as answer:
                return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}

    def json(self, path: str) -> dict:
        return json.loads(self.get(path)[1])

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer, _ = self.get(path, data=content, headers={"Content-Type": "application/json", **headers})
        return status, json.loads(answer)

    @contextmanager
    def events(self) -> Iterator["Events"]:
        with urllib.request.urlopen(self.address + "/api/events", timeout=30) as stream:
            yield Events(stream)


class Events:
    """Messages of an event stream."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.session = self.next("hello")["session"]

    def next(self, name: str) -> dict:
        """The next message of a name."""
        while True:
            event = self.stream.readline().decode().strip().removeprefix("event: ")
            data = json.loads(self.stream.readline().decode().removeprefix("data: "))
            self.stream.readline()
            if event == name:
                return data


@contextmanager
def serving(settings: SceneSettings) -> Iterator[Served]:
    scene, listener = open_scene(settings), listen(None)
    server = make_server(scene)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    eventually(lambda: server.started, 10, "the server starts")
    try:
        yield Served(scene, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()
        scene.close()
        listener.close()
