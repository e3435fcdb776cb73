"""Random networks of every operation that has a rule: a list of steps, drawn one after another.

A step is a module from one tensor to one tensor, so that ``repr`` of the network tells how to write
it down. What shape a step leaves is found by running it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from typing_extensions import override

Layout = Literal["image", "tokens", "table"]
Shape = tuple[int, ...]
LARGEST = 320  # entries of a sample between two steps
OUTPUTS = 4


class Draw:
    """Draws the settings of steps, and nested steps."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw

    def one_of(self, *values: Any) -> Any:
        """One of the values; failing examples shrink to the first."""
        return self.draw(st.sampled_from(values))

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def dim(self, shape: Shape) -> int:
        """A dimension of a batch of samples, not that of the batch; from either end."""
        dim = self.integer(1, len(shape))
        return dim - len(shape) - 1 if self.flag() else dim

    def branch(self, layout: Layout, shape: Shape, steps: int = 2) -> tuple[nn.Module, Shape]:
        """Nested steps that keep the layout, and the shape that they leave."""
        modules: list[nn.Module] = []
        for _ in range(self.integer(1, steps)):
            module, left = self.step(layout, shape, NESTED)
            if module is not None:
                modules.append(module)
                shape = left
        return nn.Sequential(*modules), shape

    def step(
        self, layout: Layout, shape: Shape, kinds: dict[Layout, list[Kind]]
    ) -> tuple[nn.Module | None, Shape]:
        """A step for a value, None where what was drawn does not go with it."""
        kind = self.one_of(*kinds[layout])
        module = kind.make(self, shape)
        if module is None:
            return None, shape
        left = shape_after(module, shape)
        return (module, left) if _numel(left) <= LARGEST else (None, shape)


def _numel(shape: Shape) -> int:
    return torch.Size(shape).numel()


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    """The shape of a sample after a module."""
    with torch.no_grad():
        result: Tensor = module.double().eval()(torch.zeros(2, *shape, dtype=torch.float64))
    assert result.shape[0] == 2
    return tuple(result.shape[1:])


@dataclass(frozen=True)
class Kind:
    """One kind of step.

    Attributes:
        name: of its function.
        make: draws the settings for a value of a shape (without the batch).
        operations: what it can put into the graph that no other kind needs to.
    """

    name: str
    make: Callable[[Draw, Shape], nn.Module | None]
    operations: tuple[str, ...]


KINDS: dict[Layout, list[Kind]] = {"image": [], "tokens": [], "table": []}
# Those that a branch may hold: without branches of their own.
NESTED: dict[Layout, list[Kind]] = {"image": [], "tokens": [], "table": []}


def kind(
    layouts: str, operations: str = "", nests: bool = False
) -> Callable[[Callable[[Draw, Shape], nn.Module | None]], Callable[[Draw, Shape], Any]]:
    """Enter a function as a kind of step.

    Args:
        layouts: the layouts that it takes: image (C, *size), tokens (L, C), table (C,).
        operations: names without "aten." (and without ".default") of what it is there to draw.
        nests: whether it draws branches.
    """
    names = tuple(
        f"aten.{name}" + ("" if "." in name else ".default") for name in operations.split()
    )

    def enter(make: Callable[[Draw, Shape], nn.Module | None]) -> Callable[[Draw, Shape], Any]:
        made = Kind(make.__name__, make, names)
        for layout in layouts.split():
            KINDS[layout].append(made)  # type: ignore[index]
            if not nests:
                NESTED[layout].append(made)  # type: ignore[index]
        return make

    return enter


class Call(nn.Module):
    """A function of the value, with its other arguments."""

    def __init__(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.function = function
        self.args = args
        self.kwargs = kwargs

    @override
    def forward(self, y: Tensor) -> Tensor:
        return self.function(y, *self.args, **self.kwargs)

    @override
    def extra_repr(self) -> str:
        name = getattr(self.function, "__qualname__", str(self.function))
        settings = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        return ", ".join([name, *settings])


class With(nn.Module):
    """A function of this module and the value; ``self`` holds modules, parameters and settings."""

    def __init__(
        self, function: Callable[[Any, Tensor], Tensor], settings: Any = None, **held: Any
    ) -> None:
        super().__init__()
        self.function = function
        self.settings = settings
        for name, value in held.items():
            made = nn.Parameter(torch.zeros(value)) if isinstance(value, tuple) else value
            setattr(self, name, made)

    @override
    def forward(self, y: Tensor) -> Tensor:
        return self.function(self, y)

    @override
    def extra_repr(self) -> str:
        shapes = {
            name: tuple(value.shape)
            for name, value in self._parameters.items()
            if value is not None
        }
        parts = [getattr(self.function, "__qualname__", ""), *map(str, [self.settings, shapes])]
        return ", ".join(part for part in parts if part not in ("None", "{}"))


@dataclass(frozen=True)
class Network:
    """A network and what its inputs look like.

    Attributes:
        model: in float64 and eval mode.
        shape: of a sample.
        inputs: "mixed", "nonnegative" or "sparse" entries, or "with zeros": a sample that is 0.
        seed: of the parameters and the input.
    """

    model: nn.Module
    shape: Shape
    inputs: str
    seed: int

    def batch(self, samples: int) -> Tensor:
        """An input."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        size = (samples, *self.shape)
        x = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
        if self.inputs == "sparse":
            x = x.clamp(min=0)
        elif self.inputs == "nonnegative":
            x = x.abs()
        elif self.inputs == "with zeros":
            x[-1] = 0
        return x.to(torch.get_default_device())


_SHAPES: tuple[tuple[Layout, Shape], ...] = (
    ("image", (3, 6, 6)),
    ("image", (4, 5, 4)),
    ("image", (4, 6, 4)),
    ("image", (4, 9)),
    ("image", (2, 3, 4, 3)),
    ("tokens", (5, 4)),
    ("tokens", (6, 6)),
    ("table", (6,)),
)


@st.composite
def networks(draw: Any, steps: int = 6) -> Network:
    """Networks of up to ``steps`` steps before the head."""
    return draw_network(Draw(draw), steps)


def draw_network(d: Draw, steps: int) -> Network:
    """A network of up to ``steps`` steps before the head."""
    layout, shape = d.one_of(*_SHAPES)
    first = shape
    modules: list[nn.Module] = []
    for _ in range(d.integer(1, steps)):
        if layout != "table" and d.integer(0, 9) == 9:
            module, layout = _turn(d, layout)
            left = shape_after(module, shape)
        else:
            made, left = d.step(layout, shape, KINDS)
            if made is None:
                continue
            module = made
        modules.append(module)
        shape = left
    modules += _head(d, layout, shape)
    seed = d.integer(0, 2**16)
    model = nn.Sequential(*modules)
    initialise(model, seed)
    inputs = d.one_of("mixed", "nonnegative", "sparse", "with zeros")
    return Network(model.double().eval(), first, inputs, seed)


def initialise(model: nn.Module, seed: int) -> None:
    """Draw parameters and running statistics."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        entries = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            entries = entries.abs() + 0.5
        with torch.no_grad():
            tensor.copy_(0.6 * entries)


def _to_tokens(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


def _to_image(y: Tensor) -> Tensor:
    return y.transpose(1, 2)


def _turn(d: Draw, layout: Layout) -> tuple[nn.Module, Layout]:
    """Change the layout."""
    if d.flag():
        module: nn.Module = nn.Flatten()
        if layout == "tokens":
            module = d.one_of(Call(torch.select, 1, 0), Call(torch.mean, 1), module)
        return module, "table"
    if layout == "image":
        return Call(_to_tokens), "tokens"
    return Call(_to_image), "image"


def _head(d: Draw, layout: Layout, shape: Shape) -> list[nn.Module]:
    """From any value to a row of outputs."""
    modules: list[nn.Module] = []
    pooled = layout != "table" and d.flag()
    if pooled and layout == "image" and d.flag():
        conv: Any = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
        last: nn.Module = conv(shape[0], OUTPUTS, 1)
        return [last, Call(torch.mean, tuple(range(2, len(shape) + 1)))]
    if pooled and layout == "image":
        modules = [Call(torch.mean, tuple(range(2, len(shape) + 1)))]
        width = shape[0]
    elif pooled:
        modules, width = [Call(torch.mean, 1)], shape[1]
    else:
        modules, width = ([] if layout == "table" else [nn.Flatten()]), _numel(shape)
    modules.append(nn.Linear(width, OUTPUTS, bias=d.flag()))
    after: list[list[nn.Module]] = [
        [nn.ReLU(inplace=True), nn.Linear(OUTPUTS, OUTPUTS)],
        [Call(torch.flip, (1,))],
        [Call(_doubled)],
        [nn.Unflatten(1, (2, 2)), nn.Flatten()],
        [With(_with_second_head, second=nn.Linear(OUTPUTS, 2))],
        [nn.Softplus()],
    ]
    return modules + (d.one_of(*after) if d.flag() else [])


def _with_second_head(m: Any, y: Tensor) -> Tensor:
    return torch.cat([y, m.second(y)], 1)


def _doubled(y: Tensor) -> Tensor:
    return torch.cat([y, y], 1)
