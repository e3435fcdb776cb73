"""``python -m bench.gpu OUTDIR [MINUTES]``: all stages. ``bench/gpu.sh`` prepares and starts it."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path
from types import FrameType

import click

from bench.gpu.drive import Driver, Log
from bench.gpu.plan import NETWORKS
from bench.gpu.stages import MINUTES, Stage, stages
from bench.gpu.store import Store

STARTED = "RAPKERNELS_GPU_STARTED"


def chosen_stages(names: str, networks: tuple[str, ...]) -> list[Stage]:
    """The stages with these names, separated by commas; '' for all. The probe is always one."""
    known = stages(networks)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in {stage.name for stage in known}]
    if unknown:
        raise click.BadParameter(
            f"no stage {', '.join(unknown)}; there are {', '.join(stage.name for stage in known)}"
        )
    return [stage for stage in known if not wanted or stage.needed or stage.name in wanted]


def command_text(minutes: float, names: str, device: str) -> str:
    """The command to repeat this run."""
    settings = [f"RAPKERNELS_GPU_STAGES={names}"] if names else []
    settings += [f"RAPKERNELS_GPU_DEVICE={device}"] if device != "cuda" else []
    return " ".join([*settings, "bench/gpu.sh", "OUTDIR", shlex.quote(f"{minutes:g}")])


@click.command(help="Build, check, measure and test on the GPU; results go to OUTDIR.")
@click.argument("outdir", type=click.Path(path_type=Path, file_okay=False))
@click.argument("minutes", type=click.FloatRange(min=0.1), default=MINUTES)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Small shapes and networks, to try the script.")
@click.option("--stages", "names", default="", help="Names, separated by commas. Default: all.")
def main(outdir: Path, minutes: float, device: str, tiny: bool, names: str) -> None:
    """Run all stages; the text for users is the command's help."""
    # The time that the shell script took before counts too.
    started = float(os.environ.get(STARTED) or time.time())
    outdir = outdir.resolve()
    outdir.mkdir(parents=True, exist_ok=True)
    chosen = chosen_stages(names, ("tiny",) if tiny else tuple(NETWORKS))
    dry = tiny or device != "cuda"
    store = Store(outdir, dry)
    for old in ("gpu.json", "table.md"):
        (outdir / old).unlink(missing_ok=True)
    with (outdir / "log.txt").open("w", encoding="utf-8") as stream:
        log = Log(stream, started)
        driver = Driver(
            out=outdir,
            store=store,
            log=log,
            end=started + 60 * minutes,
            total=60 * minutes,
            common=("--device", device, *(["--tiny"] if tiny else [])),
        )

        def stop(number: int, _frame: FrameType | None) -> None:
            log.say("run", f"stopped by signal {number}; the results so far are kept")
            driver.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        os.environ["RAPKERNELS_GPU_COMMAND"] = command_text(minutes, names, device)
        status = driver.run(chosen)
    click.echo(store.table())
    raise SystemExit(status)


if __name__ == "__main__":
    main()
