"""Small networks in plain torch that between them use every rule, and what builds them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests import networks_modern as modern


class Function(nn.Module):
    """A function of ``x`` and of the modules given by name."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **settings: Any) -> nn.Conv2d:
    settings.setdefault("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, **settings)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1.0, 1.5, channels))
        module.bias.copy_(torch.linspace(-0.5, 0.5, channels))
        module.running_mean.copy_(torch.linspace(-0.3, 0.3, channels))
        module.running_var.copy_(torch.linspace(0.5, 2.0, channels))
    return module


def seeded(
    build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, seed: int = 3
) -> nn.Module:
    """A network whose parameters are drawn on the CPU: the same ones on every device."""
    with torch.device("cpu"):
        torch.manual_seed(seed)
        module = build()
    return module.to(torch.get_default_device(), dtype).eval()


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal entries, drawn on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    entries = torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
    return entries.to(torch.get_default_device())


@functools.cache
def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """One of NETWORKS, exported once for all tests: they must not change it."""
    return seeded(NETWORKS[name], dtype)


def images(batch: int = 2, size: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return drawn(batch, 3, size, size, seed=11, dtype=torch.float64).to(dtype)


def head(y: Tensor) -> Tensor:
    return y.flatten(1)


def _residual(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.bn(m.a(x)))
    z = m.b(y)
    z += y
    return m.fc(head(functional.relu(z, inplace=True)))


def _concatenated(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    return m.fc(torch.cat([m.b(y), y, m.c(y)], 1).mean((2, 3)))


def _sliced(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    first, second = y.chunk(2, 1)
    part = torch.cat([second, first[:, :1], y[:, 3:4]], 1)
    part = part.permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1, 4).transpose(1, 2)
    return m.fc(part.narrow(2, 1, 7).select(2, 3))


def _pads(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(functional.pad(x, (0, 1, 2, 0))))
    y = functional.max_pool2d(functional.pad(y, (1, 1, 1, 1)), 2)
    y = m.b(functional.pad(y, (1, 0, 0, 1), mode="reflect"))
    y = m.c(functional.pad(y, (1, 1, 1, 1), value=0.5))
    return m.fc(functional.avg_pool2d(functional.pad(y, (-1, 0, 0, 0)), 2).mean((-1, -2)))


def _pools(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    y = functional.max_pool2d(y, 3, 1, 1, dilation=1)
    y = functional.avg_pool2d(y, 2, 1, ceil_mode=True, count_include_pad=False)
    y = functional.adaptive_max_pool2d(m.b(y), 4)
    return m.fc(functional.adaptive_avg_pool2d(y, (3, 2)).mean(3).sum(dim=2))


def _shared(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    y = functional.relu(m.b(y))
    return m.fc(functional.relu(m.b(y)).mean((2, 3)))


def _affine(m: Any, x: Tensor) -> Tensor:
    x = (x - 0.2) / 0.5
    y = m.a(-x * m.scale.weight[0]) * 2 + 1
    y = 3 - y
    return m.fc((m.bn(y) / m.scale.weight[0, 0]).mean((2, 3)))


def _sums(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    pooled = y.mean((2, 3), keepdim=True)
    y = y + pooled
    y = torch.sub(y, m.b(y), alpha=0.5)
    y = torch.add(y, y, alpha=2)
    return m.fc((y + y).mean((2, 3)))


def _sequence(m: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    y = functional.relu(m.a(tokens.reshape(-1, 3)))
    y = y.view(x.shape[0], -1, 4)
    return m.fc(torch.stack([y, y], 1).mean((1, 2)))


def _volumes(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x.flatten(2)))
    y = functional.max_pool1d(m.b(y), 2)
    z = y.view(x.shape[0], 4, 2, 3, 3)
    z = functional.avg_pool3d(functional.relu(m.c(z)), 2, 1)
    return m.fc(functional.adaptive_avg_pool3d(functional.max_pool3d(z, 2, 1, 1), 1).flatten(1))


def _moved(m: Any, x: Tensor) -> Tensor:
    y = functional.pixel_shuffle(m.a(x), 2)
    y = y.expand(x.shape[0], 1, 12, 12).repeat(1, 4, 1, 1)
    y = torch.roll(torch.flip(m.b(y), [2]), 1, 3).unsqueeze(1).squeeze(1)
    return m.fc(y.unflatten(1, (2, 2)).flatten(1, 2).mean((2, 3)))


def _conv_head(m: Any, x: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(functional.relu(m.b(functional.relu(m.a(x)))), 1).flatten(
        1
    )


def _geometry(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    y = m.b(y) + m.c(y)
    return m.fc(m.d(functional.hardtanh(y, -0.5, 0.5)).mean((2, 3)))


def _matmul(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(torch.matmul(x.flatten(1), m.a.weight.T))
    y = functional.relu6(torch.mm(y, m.b.weight.t()))
    return torch.addmm(m.b.bias, y, m.b.weight.t())


# Their gates, attention weights and statistics are constants to relevance.
MODERN: dict[str, Callable[[], nn.Module]] = {
    "squeezed": lambda: Function(modern.squeezed, **modern.modules_of_squeezed()),
    "attended": lambda: Function(modern.attended, **modern.modules_of_attended()),
    "multiheaded": lambda: Function(modern.multiheaded, **modern.modules_of_multiheaded()),
    "windowed": lambda: Function(modern.windowed, **modern.modules_of_windowed()),
    "normalised": lambda: Function(modern.normalised, **modern.modules_of_normalised()),
    "decoded": lambda: Function(modern.decoded, **modern.modules_of_decoded()),
    "chosen": lambda: Function(modern.chosen, **modern.modules_of_chosen()),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Function(_residual, a=conv(3), bn=norm(), b=conv(), fc=nn.Linear(144, 5)),
    "concatenated": lambda: Function(
        _concatenated, a=conv(3), b=conv(4, 2, 1), c=conv(4, 3), fc=nn.Linear(9, 5)
    ),
    "sliced": lambda: Function(_sliced, a=conv(3), fc=nn.Linear(4, 5)),
    "pads": lambda: Function(
        _pads, a=conv(3, padding=0), b=conv(), c=conv(padding=1), fc=nn.Linear(4, 5)
    ),
    "pools": lambda: Function(_pools, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "shared": lambda: Function(_shared, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "affine": lambda: Function(
        _affine, a=conv(3), bn=norm(), scale=nn.Linear(1, 3), fc=nn.Linear(4, 5)
    ),
    "sums": lambda: Function(_sums, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "sequence": lambda: Function(_sequence, a=nn.Linear(3, 4), fc=nn.Linear(4, 5)),
    "volumes": lambda: Function(
        _volumes,
        a=nn.Conv1d(3, 4, 3, padding=1),
        b=nn.Conv1d(4, 4, 1),
        c=nn.Conv3d(4, 4, 2, padding=1),
        fc=nn.Linear(4, 5),
    ),
    "moved": lambda: Function(_moved, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "conv head": lambda: Function(_conv_head, a=conv(3), b=conv(4, 5, 1)),
    "geometry": lambda: Function(
        _geometry,
        a=nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding="valid", bias=False),
        b=nn.Conv2d(4, 4, 2, padding="same", groups=2),
        c=nn.Conv2d(4, 4, 2, padding="same", dilation=2, padding_mode="zeros"),
        d=nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        fc=nn.Linear(4, 5),
    ),
    "matmul": lambda: Function(_matmul, a=nn.Linear(108, 4), b=nn.Linear(4, 4)),
    "linear alone": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 5)),
    "layers": lambda: nn.Sequential(
        nn.Dropout2d(),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Identity(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(144, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.Unflatten(1, (5, 1)),
        nn.Flatten(),
    ),
    **MODERN,
}
