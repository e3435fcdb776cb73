"""Whether there is a GPU, which one, and all that a reader needs to know of the machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import click
import torch

from bench.gpu.clock import l2_bytes
from bench.gpu.messages import Reporter
from bench.gpu.results import Gpu
from bench.gpu.settings import stage_options
from bench.machine import one_line, provenance

# Read only: the card's settings are never touched.
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")
BUSY_SIZE = 8192


def gpu() -> Gpu:
    """The present card."""
    card = torch.cuda.get_device_properties(0)
    return Gpu(
        name=card.name,
        capability=f"{card.major}.{card.minor}",
        multiprocessors=card.multi_processor_count,
        l2_mb=round(l2_bytes(torch.device("cuda", 0)) / 1e6, 1),
        memory_gb=round(card.total_memory / 1e9, 1),
        driver=nvidia_smi(["driver_version"]).get("driver_version"),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        clocks=clocks(),
    )


def no_gpu() -> Gpu:
    """What stands in for the card where the script is only tried."""
    return Gpu("none: tried on the CPU", "0.0", 0, 0.0, 0.0, None, torch.version.cuda, None, {})


def clocks() -> dict[str, str]:
    """Clocks and power limit at rest, and the clocks while the card works."""
    found = {f"{name} at rest": value for name, value in nvidia_smi(CLOCKS).items()}
    a = torch.randn(BUSY_SIZE, BUSY_SIZE, device="cuda", dtype=torch.bfloat16)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(nvidia_smi, CLOCKS[:2])
        while not asked.done():
            for _ in range(20):
                torch.mm(a, a)
            torch.cuda.synchronize()
    return found | {f"{name} under load": value for name, value in asked.result().items()}


def nvidia_smi(fields: Sequence[str]) -> dict[str, str]:
    """What nvidia-smi says of the first card; nothing where it does not run."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=False)) if done.stdout.strip() else {}


def check_gpu() -> None:
    """Raise ClickException with the reason where no GPU can be used."""
    if torch.version.cuda is None:
        raise click.ClickException(
            f"no GPU can be used: this torch {torch.__version__} has no CUDA"
        )
    if not torch.cuda.is_available():
        raise click.ClickException(
            f"no GPU is here: torch {torch.__version__} finds none (nvidia-smi: "
            f"{nvidia_smi(['name']).get('name', 'does not run')})"
        )
    try:
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError as error:
        raise click.ClickException(f"the GPU cannot be used: {one_line(error)}") from error


@click.command(help="Say which GPU is here.")
@click.option(
    "--command",
    envvar="RAPKERNELS_GPU_COMMAND",
    default="bench/gpu.sh",
    help="What started the run.",
)
@stage_options
def main(
    command: str, device: str, tiny: bool, seconds: float, marked: bool, done: tuple[str, ...]
) -> None:
    """Run the stage; the text for users is the command's help."""
    del tiny, seconds
    reporter = Reporter(marked, frozenset(done))
    if device == "cuda":
        check_gpu()
    reporter.part("provenance", provenance(command))
    card = gpu() if device == "cuda" else no_gpu()
    reporter.part("gpu", card)
    reporter.detail(
        f"{card.name}, {card.multiprocessors} multiprocessors, L2 {card.l2_mb} MB, driver "
        f"{card.driver}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
