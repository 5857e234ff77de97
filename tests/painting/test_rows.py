"""Rows of a batch are computed alike: an operation that breaks this is found, and computed in another way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsigen.errors import SettingsError
from wsigen.masks.conditions import read_surroundings
from wsigen.masks.slide_mask import SlideMask
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.painter import WindowJob
from wsigen.painting.rows import RowCheck, equal_rows, rows_are_equal
from wsigen.painting.slide_worker import make_painter

ROWS = 8
LIBRARY = torch.library.Library("wsigen_rows_test", "DEF")
LIBRARY.define("odd_rows_differ(Tensor x, int[] sizes) -> Tensor")
LIBRARY.define("never_the_same(Tensor x) -> Tensor")
CALLS = [0]


def odd_rows_differ(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Twice x; in batches of these sizes every other row a little more, as libraries do for some."""
    out = 2 * x
    if len(x) in sizes:
        out[1::2] += 1e-3
    return out


def never_the_same(x: torch.Tensor) -> torch.Tensor:
    """Something else at every call, and in every row."""
    CALLS[0] += 1
    return x + CALLS[0] + torch.arange(len(x)).reshape(-1, *[1] * (x.dim() - 1))


LIBRARY.impl("odd_rows_differ", odd_rows_differ, "CompositeExplicitAutograd")
LIBRARY.impl("never_the_same", never_the_same, "CompositeExplicitAutograd")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSIGEN_CACHE", str(tmp_path / "cache"))


def equal_batch():
    return torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).expand(ROWS, -1, -1, -1).contiguous()


@pytest.mark.parametrize(
    ("sizes", "way"),
    [
        ([8], "with 1 more rows"),
        ([8, 9, 10, 12], "with 8 more rows"),
        ([8, 9, 10, 12, 16], "in 2 parts"),
        ([2, 4, 8, 9, 10, 12, 16], "row by row"),
    ],
)
def test_the_first_way_with_equal_rows_is_taken(sizes, way):
    operation = torch.ops.wsigen_rows_test.odd_rows_differ
    given = equal_batch()
    with torch.inference_mode(), RowCheck(ROWS) as check:
        found = F.silu(operation(given, sizes))
    verdict = check.verdict
    assert rows_are_equal(found, ROWS)
    assert [line.split(": ")[-1] for line in verdict.describe()] == [way]
    assert verdict.calls == 2
    x = torch.randn(ROWS, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), equal_rows(ROWS, verdict.ways):
        assert torch.equal(operation(x, sizes), 2 * x)
    assert not torch.equal(operation(x, sizes), 2 * x)


def test_a_convolution_may_compute_more_outputs_than_are_wanted():
    x, weight, bias = torch.randn(4, 3, 6, 6), torch.randn(5, 3, 3, 3), torch.randn(5)
    expected = F.conv2d(x, weight, bias, padding=1)
    seen = RowCheck(4)
    with seen:
        F.conv2d(x[:1].expand(4, -1, -1, -1).contiguous(), weight, bias, padding=1)
    assert seen.verdict.ways == {}, "torch keeps them equal here"
    from wsigen.painting import rows

    key = rows._Call(F.conv2d, (x, weight, bias), {"padding": 1}, 4).key
    with equal_rows(4, {key: "with outputs filled up to 128"}):
        got = F.conv2d(x, weight, bias, padding=1)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected)


def test_what_no_way_helps_is_one_line_that_names_the_mend():
    told = r"--batch-size 8: .*never_the_same.*choose another --batch-size"
    with pytest.raises(SettingsError, match=told) as caught, RowCheck(ROWS):
        torch.ops.wsigen_rows_test.never_the_same(equal_batch())
    assert "\n" not in str(caught.value)


def test_not_a_number_equals_itself_and_minus_nought_is_not_nought():
    assert rows_are_equal(torch.full((3, 2), torch.nan), 3)
    assert not rows_are_equal(torch.tensor([[0.0], [-0.0]]), 2)


@pytest.fixture
def jobs(mask_path):
    mask = SlideMask.open(mask_path, 6)
    known = np.zeros((64, 64), bool)
    context = np.zeros((64, 64, 3), np.uint8)
    yield [WindowJob(x, 40, read_surroundings(mask, x, 40, 64, 64, 0.5), context, known) for x in (0, 50, 100, 150)]
    mask.close()


def test_a_window_has_its_pixels_in_every_row_where_a_library_breaks_this(spec, model_path, jobs, monkeypatch):
    """A convolution of the network whose rows of four are computed in two ways, as cuDNN does for some shapes."""
    plain = torch.nn.Conv2d._conv_forward

    def broken(self, x, weight, bias):
        found = plain(self, x, weight, bias)
        if self.in_channels == self.out_channels:
            return torch.ops.wsigen_rows_test.odd_rows_differ(found, [4])
        return found

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", broken)
    model = NasdmModel.from_pretrained(model_path)
    painter = make_painter(replace(spec, batch_size=4), model)
    alone = painter.paint(jobs[:1])[0]
    assert np.array_equal(painter.paint([*jobs[1:], jobs[0]])[3], alone)
    verdict = painter.open(64)
    assert verdict.ways and set(verdict.ways.values()) == {"with 1 more rows"}
    again = make_painter(replace(spec, batch_size=4), model)
    monkeypatch.setattr(type(again), "_check", lambda *_: pytest.fail("the verdict is kept"))
    assert again.open(64) == verdict
