"""What a stage tells the driver: lines of its output, JSON behind a mark, among lines of text."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from bench.gpu.results import PARTS, ROWS
from bench.schema import decode

MARK = "@gpu "
# Exit statuses of a stage, beside 0 and 1.
CUT_OFF = 74
CONTEXT_LOST = 75
DOES_NOT_WORK = 77


@dataclass(frozen=True)
class Message:
    """`begin`: a piece of work starts; `end`: it is done; `row` and `part`: a result."""

    what: Literal["begin", "end", "row", "part", "detail"]
    name: str
    value: Any = None


@dataclass
class Reporter:
    """Prints results: marked lines where a driver listens, else only the text.

    A piece of work has a key. One that a driver has seen done, or seen crash, is not done again
    when the stage is started anew.
    """

    marked: bool
    done: frozenset[str] = frozenset()

    def say(self, text: str) -> None:
        """A line for people."""
        print(text, flush=True)

    def begin(self, key: str) -> bool:
        """Announce a piece of work; False where it is done already."""
        if key in self.done:
            return False
        self._send({"what": "begin", "name": key})
        return True

    def end(self, key: str) -> None:
        """The piece of work is done, whether well or not."""
        self._send({"what": "end", "name": key})

    def row(self, table: str, row: Any) -> None:
        """Add a row to a table of the result file."""
        self._send({"what": "row", "name": table, "value": dataclasses.asdict(row)})

    def part(self, name: str, part: Any) -> None:
        """Set a part of the result file."""
        self._send({"what": "part", "name": name, "value": dataclasses.asdict(part)})

    def detail(self, text: str) -> None:
        """What the result file says of this stage."""
        self.say(text)
        self._send({"what": "detail", "name": text})

    def _send(self, message: dict[str, Any]) -> None:
        if self.marked:
            self.say(MARK + json.dumps(message, allow_nan=False))


def parse(line: str) -> Message | None:
    """The message in a line of output; None where it is text.

    Raises:
        SchemaError, ValueError: a marked line that cannot be read.
    """
    if not line.startswith(MARK):
        return None
    message = decode_message(json.loads(line[len(MARK) :]))
    classes = {"row": ROWS, "part": PARTS}.get(message.what)
    if classes is None:
        return message
    if message.name not in classes:
        raise ValueError(f"no {message.what} {message.name!r} in a result file")
    value = decode(classes[message.name], message.value, message.name)
    return Message(message.what, message.name, value)


def decode_message(data: Any) -> Message:
    """A message as sent, its value not yet checked."""
    if not isinstance(data, dict) or not {"what", "name"} <= set(data):
        raise ValueError(f"not a message: {data!r}")
    return Message(data["what"], str(data["name"]), data.get("value"))


def finite(value: float | None) -> float | None:
    """A number that JSON can hold; None for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None
