"""docs/metrics.md: its Python runs, and its table has every function."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rapkernels import metrics

pytestmark = pytest.mark.cpu_only

TEXT = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
def test_the_python_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/metrics.md", "exec"), {"__name__": "docs"})


def test_every_function_is_there_with_its_source() -> None:
    mentioned = set(re.findall(r"`([A-Za-z_]+)(?:\(|`)", TEXT))
    assert set(metrics.__all__) - {"to_map"} <= mentioned
    for name in metrics.__all__:
        assert getattr(metrics, name).__doc__
