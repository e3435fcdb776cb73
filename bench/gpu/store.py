"""``gpu.json`` while it grows: written anew, in one step, after each thing that is measured."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

from bench.gpu.messages import Message
from bench.gpu.results import Gpu, GpuFile, GpuStage
from bench.gpu.table import render_gpu
from bench.gpu.verdicts import verdicts
from bench.schema import VERSION, Provenance


class Store:
    """Collects the results of all stages. Nothing is written before the probe has reported."""

    def __init__(self, folder: Path, dry: bool) -> None:
        self._folder = folder
        self._dry = dry
        self._provenance: Provenance | None = None
        self._stages: dict[str, GpuStage] = {}
        self._lock = threading.RLock()
        self.document: GpuFile | None = None

    def take(self, message: Message) -> None:
        """Add what a stage reported, and write the file."""
        with self._lock:
            if self.document is None:
                self._start(message)
            elif message.what == "row":
                rows = [*getattr(self.document, message.name), message.value]
                self._replace(**{message.name: rows})
            elif message.what == "part":
                self._replace(**{message.name: message.value})

    def _start(self, message: Message) -> None:
        if message.name == "provenance":
            self._provenance = message.value
        elif isinstance(message.value, Gpu) and self._provenance is not None:
            self.document = GpuFile(
                "gpu", VERSION, self._provenance, self._dry, finished=False, gpu=message.value
            )
            self._replace()

    def stage(self, stage: GpuStage) -> None:
        """Say how a stage stands; a later word about the same stage replaces it."""
        with self._lock:
            self._stages[stage.name] = stage
            if self.document is not None:
                self._replace()

    def finish(self) -> None:
        """The run has come to its end, whether all stages passed or not."""
        with self._lock:
            if self.document is not None:
                self._replace(finished=True)

    def table(self) -> str:
        """The results so far, for people."""
        return "" if self.document is None else render_gpu(self.document, full=True)

    def _replace(self, **parts: object) -> None:
        if self.document is None:
            return
        stages = list(self._stages.values())
        document = dataclasses.replace(self.document, stages=stages, **parts)  # type: ignore[arg-type]
        self.document = dataclasses.replace(document, limits=verdicts(document))
        text = json.dumps(dataclasses.asdict(self.document), indent=1, allow_nan=False)
        write_whole(self._folder / "gpu.json", text + "\n")

    def write_table(self) -> None:
        """Write ``table.md``."""
        with self._lock:
            if self.document is not None:
                write_whole(self._folder / "table.md", self.table() + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, and never a part."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
