"""The layers of a step as the native calls that they come to: found once, and made again in later steps.

Between two native calls Python looks up modules, makes views of tensors and asks for addresses: some 0.1 ms a layer,
which is a tenth of the time of a 110 M model's step with one sequence. Where nothing but the numbers in memory differs
from step to step, the calls are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakMethod

from torch import Tensor

from models.kernels.cpu.attention import AttentionCalls, CpuPagedAttention
from models.kernels.cpu.library import Call, Calls
from models.kernels.cpu.memory import Workspace
from models.kernels.interface import Layers

#: Numbers of rows whose calls are kept: a batch often has the same, or one less. Each keeps a result of attention.
_MAX_KEPT = 16


@dataclass(frozen=True, slots=True)
class _Kept:
    """Calls, and the memory that they read and write; neither decoder nor cache, which may be gone by now."""

    layers: WeakMethod[Layers]
    calls: list[Call]
    #: Residual, cosine and sine.
    inputs: tuple[Tensor, Tensor, Tensor]
    attention: AttentionCalls
    results: tuple[Tensor, Tensor]

    def can_be_repeated(self, layers: Layers, attention: CpuPagedAttention) -> bool:
        return self.layers() == layers and self.attention.fit(attention)

    def repeat(self, attention: CpuPagedAttention) -> None:
        self.attention.move_to(attention)
        for function, arguments in self.calls:
            function(*arguments)


class RepeatedLayers:
    """For layers that compute by `native` alone, on buffers of `workspace`, and never look at numbers."""

    def __init__(self, native: Calls, workspace: Workspace) -> None:
        self._native = native
        self._workspace = workspace
        self._generation = 0
        #: By number of rows, the last used last.
        self._kept: OrderedDict[int, _Kept] = OrderedDict()

    def run(
        self, layers: Layers, residual: Tensor, rotation: tuple[Tensor, Tensor], attention: CpuPagedAttention
    ) -> tuple[Tensor, Tensor]:
        """`layers`, a method, of these."""
        inputs = self._copied(0, residual), self._copied(1, rotation[0]), self._copied(2, rotation[1])
        if self._generation != self._workspace.generation:
            self._kept.clear()
            self._generation = self._workspace.generation
        kept = self._kept.pop(len(residual), None)
        if kept is None or not kept.can_be_repeated(layers, attention):
            with self._native.recorded() as calls:
                results = layers(inputs[0], inputs[1:], attention)
            kept = _Kept(WeakMethod(layers), calls, inputs, attention.calls(), results)
            if self._generation != self._workspace.generation:  # a buffer moved between two of the calls
                return results
        else:
            kept.repeat(attention)
        self._kept[len(residual)] = kept
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return kept.results

    def _copied(self, number: int, given: Tensor) -> Tensor:
        """An input, where the calls find it."""
        name = ("input", number, given.dtype)
        return self._workspace.take(name, len(given), given[0].numel(), given.dtype).view(given.shape).copy_(given)
