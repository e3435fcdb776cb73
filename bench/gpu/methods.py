"""The methods that are measured on a GPU: those of bench.methods, and captured CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.check import WrongResultError
from bench.gpu.fused_switch import fused_conv
from bench.methods import METHODS, NATIVE, UNIT, Call, Method
from bench.ours import RAP_TARGETS

REFERENCE = "rap_reference"
GRADIENT = "input_x_gradient"
ZENNIT = "zennit_epsilon_alpha2_beta1"
UNIT_NCHW = "forward_nchw"
UNIT_GRAPH = "forward_graph"
GRAPH = "rap_graph"
# RAP by the tensor-core convolutions, of several targets, and as a graph.
FUSED, FUSED_TARGETS, FUSED_GRAPH = "rap_fused", "rap_fused_targets", "rap_fused_graph"
# Our own methods that are checked, by backend.
CHECKED_METHODS = {NATIVE: "native", FUSED: "native", REFERENCE: "reference"}
# At the large batch, at batch 1, and with captured graphs.
METHODS_OF_A_RUN = (
    UNIT, NATIVE, FUSED, FUSED_TARGETS, REFERENCE, ZENNIT, GRADIENT, UNIT_NCHW
)  # fmt: skip
METHODS_OF_GRAPHS = (UNIT, NATIVE, UNIT_GRAPH, GRAPH, FUSED_GRAPH)
# What must be right for a method to be timed, where that is another one.
SAME_RESULT = {GRAPH: NATIVE, FUSED_TARGETS: FUSED, FUSED_GRAPH: FUSED}
# These change the module that they are given.
CHANGING = frozenset({ZENNIT, UNIT_NCHW})
# A replay does what the call does, in the same order; cuDNN may choose other algorithms.
GRAPH_ERROR = 1e-3
WARM_UP = 3


def _forward_nchw(model: nn.Module, example: Tensor) -> Call:
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    image = example.contiguous(memory_format=torch.contiguous_format)
    forward = METHODS[UNIT].prepare(model, image)
    return lambda _x: forward(image)


def _fused(name: str) -> Method:
    method = METHODS[name]

    def prepare(model: nn.Module, example: Tensor) -> Call:
        call = method.prepare(model, example)

        def fused(x: Tensor) -> Tensor:
            with fused_conv(True):
                return call(x)

        return fused

    return Method(f"{method.label}, tensor cores", prepare, method.modules, method.shape)


def _captured(method: Method) -> Method:
    def prepare(model: nn.Module, example: Tensor) -> Call:
        replay = capture(method.prepare(model, example), example)
        return lambda _x: replay()

    return Method(f"{method.label}, CUDA graph", prepare, method.modules)


class Replay:
    """A call captured in a CUDA graph: it reads its input where it was captured."""

    def __init__(self, call: Call, x: Tensor) -> None:
        # Exports, handles and algorithms are made before the capture, on another stream.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call(x)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.output = call(x)

    def __call__(self) -> Tensor:
        """Run the graph; the result is overwritten by the next run."""
        self._graph.replay()
        return self.output


def capture(call: Call, x: Tensor) -> Replay:
    """Capture `call` on `x`; raises what torch raises where the call cannot be captured."""
    if x.device.type != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    replay = Replay(call, x)
    check_replay(replay, call, x)
    return replay


def check_replay(replay: Callable[[], Tensor], call: Call, x: Tensor) -> None:
    """Raise WrongResultError unless a replay computes anew what it finds in `x`."""
    kept = x.clone()
    try:
        x.copy_(torch.randn_like(x))
        found, expected = replay().double(), call(x).double()
        error = float((found - expected).abs().amax() / expected.abs().amax())
    finally:
        x.copy_(kept)
    if not error <= GRAPH_ERROR:
        raise WrongResultError(
            f"the replay of the graph differs from the call by {error:.2e} of the largest entry"
        )


GPU_METHODS: dict[str, Method] = {
    **{name: METHODS[name] for name in (UNIT, NATIVE, REFERENCE, ZENNIT, GRADIENT)},
    UNIT_NCHW: Method("forward, NCHW", _forward_nchw),
    FUSED: _fused(NATIVE),
    FUSED_TARGETS: _fused(RAP_TARGETS),
    UNIT_GRAPH: _captured(METHODS[UNIT]),
    GRAPH: _captured(METHODS[NATIVE]),
    FUSED_GRAPH: _captured(_fused(NATIVE)),
}
