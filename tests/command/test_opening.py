"""A render opens its GPU beside its imports where it has one, and touches none elsewhere."""

import pytest

from wsigen.cli.opening import gpu_opened_beside
from wsigen.painting import early
from wsigen.system import gpu

OPTIONS = {"device": "auto", "dtype": "auto", "dask_scheduler": None, "workers": None, "model": ""}


@pytest.fixture
def calls(monkeypatch):
    """What is called, on a machine with a GPU's driver."""
    found = []
    monkeypatch.setattr(gpu, "has_driver", lambda: True)
    monkeypatch.setattr(early, "start", lambda model: found.append("kernels"))
    monkeypatch.setattr(gpu, "open_context", lambda: found.append("context"))
    monkeypatch.setattr(gpu, "load_libraries", lambda: found.append("libraries"))
    return found


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ["kernels", "context", "libraries"]),
        ({"device": "cuda", "dtype": "bfloat16"}, ["kernels", "context", "libraries"]),
        ({"dtype": "float32"}, ["context", "libraries"]),
        ({"workers": 2}, ["kernels"]),
        ({"device": "cpu"}, []),
        ({"device": "mps"}, []),
        ({"dask_scheduler": "tcp://host:8786"}, []),
    ],
)
def test_what_opens_follows_from_the_options(calls, changed, expected):
    with gpu_opened_beside(OPTIONS | changed) as opened:
        opened()
        assert calls == expected


def test_a_machine_without_a_driver_opens_nothing(calls, monkeypatch):
    monkeypatch.setattr(gpu, "has_driver", lambda: False)
    with gpu_opened_beside(OPTIONS) as opened:
        opened()
    assert calls == ["kernels"], "which looks for the driver itself"


def test_an_error_meanwhile_waits_for_what_opens(calls):
    with pytest.raises(ValueError, match="a mask"), gpu_opened_beside(OPTIONS):
        raise ValueError("a mask that cannot be read")
    assert calls == ["kernels", "context", "libraries"]
