"""Memory that operations hand on among them: results are those without it, and stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import rapkernels as rk
from rapkernels import _library
from rapkernels.cache import cache_of
from rapkernels.workspace import Workspace, empty_like
from tests.explainers import METHODS, explainer
from tests.networks import Function, drawn, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.built_extension,
    pytest.mark.cpu_only,
]


def _model() -> nn.Module:
    """Its tensors are large enough, about 1 MB, and of several sizes."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(m.bn(m.a(x)))
        y = torch.relu(y + m.b(y))
        y = torch.relu(m.d(m.c(torch.max_pool2d(y, 2))))
        return m.fc(y.mean((2, 3)))

    return seeded(
        lambda: Function(
            forward,
            a=nn.Conv2d(3, 16, 3, padding=1),
            bn=nn.BatchNorm2d(16),
            b=nn.Conv2d(16, 16, 3, padding=1),
            c=nn.Conv2d(16, 64, 1),
            d=nn.Conv2d(64, 64, 3, padding=1, groups=64),
            fc=nn.Linear(64, 5),
        )
    ).float()


@pytest.mark.parametrize("method", METHODS)
def test_results_are_those_without(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = explainer(method, _model())
    x, other = drawn(8, 3, 48, 48), drawn(8, 3, 48, 48, seed=1)
    found = made.attribute_targets(x, [0, 3])
    copied = found.clone()
    made.attribute_targets(other, [0, 3])
    assert torch.equal(found, copied)
    opened = []

    @contextmanager
    def never(self: Workspace) -> Iterator[None]:
        opened.append(self)
        yield

    monkeypatch.setattr(Workspace, "opened", never)
    assert torch.equal(found, made.attribute_targets(x, [0, 3]))
    assert opened


def test_relevance_of_layers_stays() -> None:
    made = rk.RAP(_model())
    x, other = drawn(8, 3, 48, 48), drawn(8, 3, 48, 48, seed=1)
    names = ["a", "b", "d"]
    _, layers = made.attribute(x, 1, layers=names)
    copies = [value.clone() for value in layers.values()]
    made.attribute(other, 1, layers=names)
    assert len(copies) == 3
    assert all(map(torch.equal, layers.values(), copies))


def test_memory_is_handed_on_and_to_the_next_call() -> None:
    like = torch.empty(1 << 20)
    workspace = Workspace()
    with workspace.opened():
        memory = empty_like(like).data_ptr()
        with workspace.opened():
            again = empty_like(like)
        assert again.data_ptr() == memory
    again.fill_(1)
    with pytest.raises(ZeroDivisionError), workspace.opened():
        raise ZeroDivisionError
    with workspace.opened():
        other = empty_like(like).fill_(2)
    assert bool((again == 1).all())
    waiting = other.data_ptr()
    del other
    assert workspace.unused_bytes == 4 << 20
    with workspace.opened():
        assert empty_like(like).data_ptr() == waiting
    with Workspace().opened():
        assert empty_like(like).data_ptr() != again.data_ptr()
    del workspace
    assert bool((again == 1).all())


def test_a_model_keeps_no_more_than_it_says() -> None:
    model = _model()
    made = rk.RAP(model)
    workspace = cache_of(model).workspace
    assert workspace.unused_bytes == 0
    made.attribute(drawn(8, 3, 48, 48), 1)
    kept = workspace.unused_bytes
    assert 0 < kept <= 64 << 20
    made.attribute(drawn(8, 3, 48, 48), 1)
    assert workspace.unused_bytes == kept


def test_a_limit_of_memory_is_not_exceeded_by_what_waits() -> None:
    model = _model()
    rk.RAP(model, max_memory="1GB").attribute(drawn(8, 3, 48, 48), 1)
    assert cache_of(model).workspace.unused_bytes == 0


def test_threads_may_share_it() -> None:
    made = rk.RAP(_model())
    inputs = [drawn(8, 3, 48, 48, seed=seed) for seed in range(4)]
    wanted = [made.attribute(x, 1) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda x: made.attribute(x, 1), inputs))
            assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_made_is_like_torch_makes_it(device: str) -> None:
    for like in (
        torch.empty(4, 32, 40, 40, device=device).to(memory_format=torch.channels_last),
        torch.empty(1 << 20, dtype=torch.bfloat16, device=device),
        torch.empty(1 << 20, dtype=torch.float64, device=device)[::2],
        torch.empty(0, device=device),
    ):
        with Workspace().opened():
            made = empty_like(like)
        wanted = torch.empty_like(like)
        assert (made.shape, made.stride()) == (wanted.shape, wanted.stride())
        assert (made.dtype, made.device) == (wanted.dtype, wanted.device)


def test_works_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_C", None)
    with Workspace().opened():
        assert empty_like(torch.empty(3)).shape == (3,)
