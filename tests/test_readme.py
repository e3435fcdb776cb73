"""README's promises: its Python runs, its commands and pictures exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
@pytest.mark.parametrize("page", ["README.md", "docs/methods.md", "docs/memory.md"])
def test_the_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks("python", (README.parent / page).read_text(encoding="utf-8"))
    assert found
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, code in enumerate(found, start=1):
        exec(compile(code, f"{page}, Python block {number}", "exec"), namespace)


def test_the_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    used = set(re.findall(r"\bmake ([a-z][a-z-]+)", "\n".join(blocks("bash"))))
    defined = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    assert {"demo", "test"} <= used <= defined


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert any(target.endswith(".png") for target in targets)
    for target in targets:
        assert (README.parent / target).exists(), target


def test_the_picture_is_small() -> None:
    assert (README.parent / "docs" / "cat_rap.png").stat().st_size < 300_000


def test_the_measured_table_has_its_place() -> None:
    for marker in ("<!-- bench:begin -->", "<!-- bench:end -->"):
        assert TEXT.count(marker) == 1
