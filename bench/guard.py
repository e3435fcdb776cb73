"""Committed figures that do not depend on the machine, and what may not change unnoticed.

A figure that rises by more than the margin is a regression. One that falls by more asks to be
renewed, so that the next regression is measured from there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.machine import ROOT
from bench.schema import SchemaError, decode

FOLDER = ROOT / "bench" / "results" / "guard"


@dataclass(frozen=True)
class Figures:
    """Figures by name, and what they are of: those of another compiler are not compared."""

    of: dict[str, str]
    values: dict[str, float]


def read(path: Path) -> Figures:
    """Read committed figures; raises OSError, or SchemaError that names the field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SchemaError(f"{path.name}: not a JSON file ({error})") from error
    return decode(Figures, data, path.name)


def write(figures: Figures, path: Path) -> None:
    """Write figures, to be committed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(figures), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def other_than(found: Mapping[str, str], committed: Mapping[str, str]) -> str:
    """What figures cannot be compared for, in words; '' where they can."""
    names = sorted({*found, *committed})
    return ", ".join(
        f"{name} is {found.get(name)}, the committed figures are of {committed.get(name)}"
        for name in names
        if found.get(name) != committed.get(name)
    )


def changes(found: Mapping[str, float], committed: Mapping[str, float], margin: float) -> list[str]:
    """One line for each figure that differs by more than `margin`, or that only one side has."""
    lines = []
    for name in sorted({*found, *committed}):
        if name not in committed:
            lines.append(f"{name}: new, no figure is committed")
        elif name not in found:
            lines.append(f"{name}: gone, its figure is still committed")
        else:
            now, before = found[name], committed[name]
            word = "ROSE" if now > before else "fell"
            if abs(now - before) > margin * abs(before):
                change = f"by {now / before - 1:+.1%}, " if before else ""
                lines.append(f"{name}: {word} {change}from {before:g} to {now:g}")
    return lines
