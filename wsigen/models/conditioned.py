"""The network with a batch's conditions in place, so that a step needs the noisy image and the timestep alone.

On a GPU, :class:`CapturedNetwork` records the work once as CUDA graphs: at a fixed batch shape every later step is one
launch, and the time that Python takes to start some hundred kernels is no longer spent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsigen.models.nasdm import NasdmModel
from wsigen.models.unet import SpadeCache


@dataclass(frozen=True)
class Conditions:
    """What conditions a batch beside its noise, in the network's dtype: see :meth:`NasdmModel.forward`."""

    planes: Tensor  # (B, P, H, W)
    context: Tensor  # (B, 3, H, W)
    known: Tensor  # (B, 1, H, W)
    style: Tensor  # (B, 6)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.planes, self.context, self.known, self.style))


class ConditionedNetwork:
    """Calls the model with conditions given once for a batch, whose SPADE maps are computed once."""

    def __init__(self, model: NasdmModel) -> None:
        self.model = model

    def begin(self, conditions: Conditions) -> None:
        """Take the conditions of the next steps."""
        self.conditions = conditions
        self.maps: SpadeCache = self.model.spade_cache(conditions.planes)

    def __call__(self, x: Tensor, timestep: float) -> Tensor:
        """Predict from the noisy window ``x`` (B, 3, H, W); the result holds until the next call."""
        t = torch.full((len(x),), timestep, device=x.device)
        planes, context, known, style = self.conditions
        return self.model(x, t, planes, context, known, style, self.maps)


class CapturedNetwork(ConditionedNetwork):
    """The same on a CUDA device, replayed from graphs; captured anew when the shape of a batch changes.

    Not for several threads at a time: inputs are copied to, and results lie in, memory that every call uses again.
    """

    def __init__(self, model: NasdmModel) -> None:
        super().__init__(model)
        self._shape: tuple[int, ...] = ()

    def begin(self, conditions: Conditions) -> None:
        """Take the conditions of the next steps, into the graphs' own memory."""
        if tuple(conditions.planes.shape) != self._shape:
            self._capture(conditions)
        for mine, given in zip(self.conditions, conditions, strict=True):
            mine.copy_(given)
        self._maps_graph.replay()

    def __call__(self, x: Tensor, timestep: float) -> Tensor:
        """Predict from the noisy window ``x`` (B, 3, H, W); the result holds until the next call."""
        self._x.copy_(x)
        self._t.fill_(timestep)
        self._step_graph.replay()
        return self._prediction

    def _capture(self, conditions: Conditions) -> None:
        self.conditions = Conditions(*(given.clone() for given in conditions))
        self._x = torch.zeros_like(conditions.context, memory_format=torch.channels_last)
        self._t = torch.zeros(len(self._x), device=self._x.device)
        # Outside a graph first: kernels compile and libraries choose their algorithms, which a graph cannot record.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.maps = self.model.spade_cache(self.conditions.planes)
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        # Other threads of this process may use the device meanwhile.
        self._maps_graph, self._step_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._maps_graph, capture_error_mode="thread_local"):
            self.maps = self.model.spade_cache(self.conditions.planes)
        with torch.cuda.graph(self._step_graph, capture_error_mode="thread_local"):
            self._prediction = self._step()
        self._shape = tuple(conditions.planes.shape)

    def _step(self) -> Tensor:
        planes, context, known, style = self.conditions
        return self.model(self._x, self._t, planes, context, known, style, self.maps)
