"""The command ``rapkernels``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status: 0 done, 1 failed, 2 misused."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(
            "Error: the command rapkernels needs the package click, which is not installed: "
            "run pip install 'rapkernels[cli]'."
        )
    from .app import app

    app(prog_name="rapkernels")
