"""State dicts: safe reading, the usual wrappings, clear refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from rapkernels.checkpoints import CheckpointError, count_outputs, load_weights, read_state_dict

pytestmark = pytest.mark.cpu_only


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 7))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
    ids=["plain", "state_dict", "model", "DataParallel"],
)
def test_wrappings(tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(dict(network().state_dict())), path)
    assert list(read_state_dict(path)) == list(network().state_dict())


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network().state_dict(), path)
    assert set(read_state_dict(path)) == set(network().state_dict())


def test_the_old_names_of_densenet(tmp_path: Path) -> None:
    path = tmp_path / "densenet.pth"
    torch.save({"features.denseblock1.denselayer1.norm.1.weight": torch.ones(2)}, path)
    assert list(read_state_dict(path)) == ["features.denseblock1.denselayer1.norm1.weight"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such weights file"):
        read_state_dict(tmp_path / "none.pth")


class Harmful:
    """Runs a command when it is unpickled carelessly."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Harmful(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="not a state dict that loads with weights_only=True"):
        read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"root:x:0:0:root", b"PK\x03\x04 cut"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: not a "):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [torch.ones(3), {}, {"epoch": 3}, [1, 2]])
def test_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state_dict(tmp_path / "weights.pth")


def test_count_outputs_in_whatever_order_the_file_is() -> None:
    state = network().state_dict()
    model = nn.Sequential(*network()[:3], nn.Linear(4, 1000))
    assert count_outputs(model, dict(sorted(state.items()))) == 7
    assert count_outputs(model, {}) is None
    assert count_outputs(nn.ReLU(), state) is None


def test_load_weights_allows_a_missing_batch_counter() -> None:
    state = dict(network().state_dict())
    del state["1.num_batches_tracked"]
    model = network()
    with torch.no_grad():
        model[3].weight.zero_()
    load_weights(model, state, "file")
    torch.testing.assert_close(model[3].weight, network()[3].weight)


def test_load_weights_of_another_network() -> None:
    state = dict(network().state_dict())
    state["extra"] = state.pop("0.bias")
    state["3.weight"] = torch.ones(8, 4)
    with pytest.raises(
        CheckpointError,
        match=r"file: these weights are of another network: the file lacks 0\.bias; it adds extra; "
        r"it has 3\.weight \(8, 4\) for \(7, 4\)",
    ):
        load_weights(network(), state, "file")
