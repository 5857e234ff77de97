"""Every row of a batch is computed alike: tried for each operation of a network, mended where a library breaks it.

A window's pixels must not depend on its row in a batch. Libraries break this silently: for some shapes a kernel sums
the last images of a batch in another order (seen: cuDNN's 3 x 3 convolutions 448 -> 224 and 352 -> 224 at 32 x 32 px in
bfloat16, rows 60 to 63 of 64). So an operation is tried with equal rows, under `RowCheck`. Where the result's rows
differ, other ways of computing it are tried in a fixed order and the first with equal rows is taken. `equal_rows` lets
the network run that way. The order never depends on timing: two machines that are alike choose alike.

Both work on calls of torch's functions (`torch.overrides.TorchFunctionMode`), so the network's code stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsigen.errors import SettingsError

OUTPUTS = 128  # output channels that a convolution is filled up to a multiple of
SHARES = (16, 8, 4, 2, 1)  # a batch is filled up by one of so many parts of itself
PARTS = (2, 4, 8)  # that a batch is cut into; at last every row is computed by itself
_NO_ROWS = {"weight", "bias", "x_bias", "map_bias", "table"}  # arguments that belong to no row, whatever their size
_FIRST_ONLY = {"conv2d", "linear", "group_norm", "layer_norm", "embedding"}  # functions whose first argument has rows
_UNDEFINED = ("empty", "new_empty", "empty_like", "empty_strided")  # functions that leave their result undefined
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Ways = Mapping[str, str]  # a call (its name, shapes and types) -> the way that it is computed


@dataclass(frozen=True)
class Verdict:
    """What a check found: ``calls`` distinct operations, and the ``ways`` of those that are computed otherwise."""

    calls: int
    ways: Ways

    def describe(self) -> list[str]:
        """Lines for people and for records: each operation that is computed otherwise, and how."""
        return [f"{call}: {way}" for call, way in sorted(self.ways.items())]


class RowCheck(TorchFunctionMode):
    """Tries every operation inside, which must be given equal rows, and finds a way for those that break them.

    Raises SettingsError where no way keeps rows equal.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self._ways: dict[str, str] = {}
        self._seen: set[str] = set()

    @property
    def verdict(self) -> Verdict:
        """What has been found so far."""
        return Verdict(len(self._seen), dict(self._ways))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; its result has equal rows."""
        call = _Call(func, args, kwargs or {}, self.rows)
        key = call.key
        if key in self._ways:
            return _way(self._ways[key])(call)
        result = call.run()
        if key is None or key in self._seen or not _has_rows(result, self.rows):
            return result
        self._seen.add(key)
        # A weight may have as many rows as the batch: what is made of unequal rows may differ.
        if not rows_are_equal(result, self.rows) and rows_are_equal(call.given, self.rows):
            self._ways[key], result = self._other_way(call, key)
        return result

    def _other_way(self, call: _Call, key: str) -> tuple[str, Any]:
        for name in () if call.in_place else ways_for(self.rows):
            try:
                result = _way(name)(call)
            except (RuntimeError, TypeError, ValueError, IndexError):
                continue  # a way that this operation does not allow
            if rows_are_equal(result, self.rows):
                return name, result
        raise SettingsError(
            f"--batch-size {self.rows}: rows of a batch differ on this device in {key}, and no other way helps; "
            "choose another --batch-size, or --dtype float32"
        )


class _EqualRows(TorchFunctionMode):
    """Computes the calls of ``ways`` otherwise."""

    def __init__(self, rows: int, ways: Ways) -> None:
        super().__init__()
        self.rows, self.ways = rows, ways
        self._names = {key.split("(")[0] for key in ways}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _name(func) in self._names:
            call = _Call(func, args, kwargs or {}, self.rows)
            if (key := call.key) is not None and key in self.ways:
                return _way(self.ways[key])(call)
        return func(*args, **(kwargs or {}))


def equal_rows(rows: int, ways: Ways) -> AbstractContextManager:
    """Let torch's functions keep ``rows`` equal inside, in this thread, by what `RowCheck` found."""
    return _EqualRows(rows, ways) if ways else nullcontext()


def rows_are_equal(result: Any, rows: int) -> bool:
    """Whether all ``rows`` of every tensor of a result have the same bits."""
    for tensor in _tensors(result):
        if not tensor.dim() or len(tensor) != rows:
            continue
        kind = _INTEGERS.get(tensor.element_size())
        bits = tensor if tensor.dtype == torch.bool or kind is None else tensor.view(kind)  # NaN differs from itself
        if not bool((bits == bits[:1]).all()):
            return False
    return True


def ways_for(rows: int) -> list[str]:
    """Names of the ways to compute an operation of so many rows, in the order in which they are tried."""
    names = [f"with outputs filled up to {OUTPUTS}"]
    extra = sorted({max(1, rows // share) for share in SHARES})
    names += [f"with {count} more rows" for count in extra]
    names += [f"in {parts} parts" for parts in PARTS if rows % parts == 0 and parts < rows]
    return [*names, "row by row"]


@cache
def _way(name: str) -> Callable[[_Call], Any]:
    """The function of a name of `ways_for`."""
    words = name.split()
    if name.startswith("with outputs"):
        return _more_outputs
    if words[0] == "with":
        return _more_rows(int(words[1]))
    return _parts(None if words[0] == "row" else int(words[1]))


class _Call:
    """A function of torch with its arguments, some of which have a row for each window."""

    def __init__(self, func: Any, args: tuple, kwargs: dict[str, Any], rows: int) -> None:
        self.func, self.args, self.kwargs, self.rows = func, args, kwargs, rows

    @property
    def key(self) -> str | None:
        """Name, shapes, types and settings; None where no argument has rows or the result is undefined."""
        name = _name(self.func)
        if name in _UNDEFINED or name.startswith("__"):
            return None
        parts = [_kind(value) for value in self.args] + [f"{key}={_kind(v)}" for key, v in self.kwargs.items()]
        return f"{name}({', '.join(parts)})" if _has_rows(self.given, self.rows) else None

    @property
    def in_place(self) -> bool:
        """Whether the function writes to its argument, so that it cannot be tried twice."""
        return _name(self.func).endswith("_") or "out" in self.kwargs

    def run(self) -> Any:
        """Call the function as it is."""
        return self.func(*self.args, **self.kwargs)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Call the function with ``change`` made to every argument that has rows."""
        arguments = [
            self._map(value, change) if self._may_have_rows(place) else value for place, value in enumerate(self.args)
        ]
        named = {name: value if name in _NO_ROWS else self._map(value, change) for name, value in self.kwargs.items()}
        return self.func(*arguments, **named)

    def _may_have_rows(self, place: int) -> bool:
        if _name(self.func) in _FIRST_ONLY:
            return place == 0
        schema = getattr(self.func, "_schema", None)
        return schema is None or place >= len(schema.arguments) or schema.arguments[place].name not in _NO_ROWS

    @property
    def given(self) -> list[Tensor]:
        """Tensors among the arguments that may have rows."""
        found: list[Tensor] = []
        for place, value in enumerate(self.args):
            if self._may_have_rows(place):
                found += list(_tensors(value))
        for name, value in self.kwargs.items():
            if name not in _NO_ROWS:
                found += list(_tensors(value))
        return found

    def _map(self, value: Any, change: Callable[[Tensor], Tensor]) -> Any:
        if isinstance(value, Tensor):
            return change(value) if value.dim() and len(value) == self.rows else value
        if isinstance(value, (list, tuple)):
            return type(value)(self._map(item, change) for item in value)
        return value


def _more_outputs(call: _Call) -> Tensor:
    """Fill a convolution's output channels up, compute those too and leave them out: another kernel serves it."""
    if _name(call.func) != "conv2d":
        raise TypeError("only a convolution has output channels")
    x, weight, *rest = call.args
    named = dict(call.kwargs)
    bias = rest.pop(0) if rest else named.pop("bias", None)
    more = -len(weight) % OUTPUTS
    if not more or named.get("groups", rest[3] if len(rest) > 3 else 1) != 1:
        raise ValueError("the output channels are a multiple already")
    filled = torch.cat([weight, weight.new_zeros(more, *weight.shape[1:])])
    if weight.is_contiguous(memory_format=torch.channels_last):
        filled = filled.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, filled, None if bias is None else F.pad(bias, (0, more)), *rest, **named)[:, : len(weight)]


def _more_rows(count: int) -> Callable[[_Call], Any]:
    """Repeat the last rows, compute those too and leave them out."""

    def filled_up(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[-count:]])

    def way(call: _Call) -> Any:
        return _map_results(call.mapped(filled_up), call.rows + count, lambda tensor: tensor[: call.rows])

    return way


def _parts(count: int | None) -> Callable[[_Call], Any]:
    """Compute a batch in so many parts (None: every row by itself), one after another."""

    def way(call: _Call) -> Any:
        size = 1 if count is None else call.rows // count
        results = [
            call.mapped(lambda tensor, start=start: tensor[start : start + size])  # type: ignore[misc]
            for start in range(0, call.rows, size)
        ]
        if isinstance(results[0], Tensor):
            return torch.cat(results)
        return type(results[0])(torch.cat(parts) for parts in zip(*results, strict=True))

    return way


def _map_results(result: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, Tensor):
        if len(result) != rows:
            raise ValueError("the result has no rows")
        return change(result)
    return type(result)(_map_results(item, rows, change) for item in result)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _has_rows(result: Any, rows: int) -> bool:
    return any(tensor.dim() and len(tensor) == rows for tensor in _tensors(result))


def _name(func: Any) -> str:
    """Name of a function: `conv2d`, or `wsigen::merge` for an operator."""
    schema = getattr(func, "_schema", None)
    return str(schema.name if schema is not None else getattr(func, "__name__", type(func).__name__))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        # Strides decide which kernel a library takes; that of a single row does not.
        strides = "" if value.is_contiguous() else f" {list(value.stride())}"
        return f"{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape))}{strides}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_kind, value))}]"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else str(value)
