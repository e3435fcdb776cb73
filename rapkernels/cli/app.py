"""The command group: one module per command, each added here."""

from __future__ import annotations

import click

import rapkernels

from .compare import compare
from .evaluate import evaluate_command
from .explain import explain
from .info import info


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rapkernels.__version__, prog_name="rapkernels")
def app() -> None:
    """Relevance propagation (RAP) for neural networks, with native kernels."""


for command in (explain, compare, evaluate_command, info):
    app.add_command(command)
