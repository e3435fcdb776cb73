"""From an exception of the library to one message on stderr and an exit status of 1."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..errors import RapError, UnsupportedOperationError


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn warnings and the errors that a user can cause into messages without a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning
            yield
    except UnsupportedOperationError as error:
        raise click.ClickException(_without_rule(error)) from error
    except RapError as error:
        raise click.ClickException(str(error)) from error


def _without_rule(error: UnsupportedOperationError) -> str:
    """Each operation once: the error itself lists every node, which can be hundreds."""
    times = Counter(node.operation for node in error.nodes)
    operations = ", ".join(f"{operation} ({count} times)" for operation, count in times.items())
    return (
        f"this network has operations without a rule: {operations}; choose another network, or "
        "give them rules in Python by rapkernels.register_rule."
    )


def _tell_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"Warning: {message}", err=True)
