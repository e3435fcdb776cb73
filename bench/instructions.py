"""Instructions of each CPU kernel per element, counted by callgrind: a guard against regressions.

    make instructions                                            # build, count, compare
    python -m bench.instructions build/cpp/count_instructions    # the same without building
    python -m bench.instructions build/cpp/count_instructions --renew

Seconds depend on the machine and on what else it does; this does not. valgrind has no AVX-512, so
that the clones for x86-64-v3 (AVX2) run. Figures belong to a compiler: those of another one are not
compared, and the command says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from bench.guard import FOLDER, Figures, changes, other_than, read, write
from bench.schema import SchemaError

FILE = FOLDER / "instructions.json"
# A patch release of the compiler moves single instructions of a loop, of which most have 10 to 50.
MARGIN = 0.05
# In bench/cpp/count_instructions.cpp: all that is counted, one dump for each call.
FUNCTION = "measured_call"


class CountError(RuntimeError):
    """Instructions cannot be counted; the message says why."""


def count(program: Path) -> Figures:
    """Run `program` under callgrind; instructions of each kernel per element.

    Raises:
        CountError: there is no valgrind, or the program did not print what it must.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CountError("valgrind is not installed")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "callgrind.out")
        command = [
            *(valgrind, "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"),
            *(f"--toggle-collect={FUNCTION}", f"--dump-after={FUNCTION}", str(program.resolve())),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise CountError(f"{program.name} under callgrind failed: {last}")
        return figures(done.stdout, out)


def figures(printed: str, out: Path) -> Figures:
    """What the program printed and the dumps OUT.1, OUT.2, ... of its calls.

    Raises:
        CountError: one does not belong to the other.
    """
    compiler, level, *calls = printed.splitlines()
    dumps = [out.with_name(f"{out.name}.{i}") for i in range(1, len(calls) + 1)]
    if not calls or not all(dump.exists() for dump in dumps):
        raise CountError(f"callgrind must leave one dump for each of {len(calls)} calls")
    values = {}
    for call, dump in zip(calls, dumps, strict=True):
        name, elements = call.rsplit(" ", 1)
        values[name] = round(_summary(dump.read_text(encoding="utf-8")) / int(elements), 3)
    return Figures({"compiler": compiler, "level": level}, values)


def _summary(dump: str) -> int:
    for line in dump.splitlines():
        if line.startswith("summary: "):
            return int(line.split()[1])
    raise CountError("a dump of callgrind has no line 'summary: '")


@click.command(help="Count the instructions of the CPU kernels and compare with what is committed.")
@click.argument("program", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--renew", is_flag=True, help="Write the committed figures instead.")
def main(program: Path, renew: bool) -> None:
    """Compare or renew; the text for users is the command's help."""
    if shutil.which("valgrind") is None:
        click.echo("instructions: not counted, valgrind is not installed")
        return
    try:
        found = count(program)
        committed = found if renew else read(FILE)
    except (CountError, OSError, SchemaError) as error:
        raise click.ClickException(str(error)) from error
    if renew:
        write(found, FILE)
        return
    other = other_than(found.of, committed.of)
    if other:
        click.echo(f"instructions: not compared: {other}; --renew makes them those of this one")
        return
    lines = changes(found.values, committed.values, MARGIN)
    if lines:
        again = f"wanted? python -m bench.instructions {program} --renew"
        raise click.ClickException("\n".join(["instructions per element:", *lines, again]))
    click.echo(f"instructions of {len(found.values)} calls are as committed, within {MARGIN:.0%}")


if __name__ == "__main__":
    main()
