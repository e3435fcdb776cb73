"""Where results go: one file for one photo, or a folder with a file per photo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click


def plan_outputs(
    photos: Sequence[Path],
    destination: str | None,
    ending: str,
    option: str,
    formats: Sequence[str],
) -> list[Path]:
    """One path per photo; folders that are needed are made.

    Args:
        photos: the input files.
        destination: a file (only for one photo), a folder, or None for the current folder.
            A name with a suffix is a file unless a folder of that name exists or it ends in "/".
        ending: what follows a photo's stem in a folder, such as "_rap.png".
        option: the option that gave ``destination``, for messages.
        formats: the suffixes that a file may have.

    Raises:
        click.UsageError: one file for several photos, a suffix that is none of ``formats``, or a
            photo would be overwritten.
        click.ClickException: the folder cannot be made.
    """
    if destination is not None and _means_file(destination):
        if len(photos) > 1:
            raise click.UsageError(
                f"{option} {destination} is one file but {len(photos)} images are given; "
                f"give a folder ({option} {Path(destination).stem}/)."
            )
        paths = [Path(destination)]
        if paths[0].suffix.lower() not in formats:
            raise click.UsageError(
                f"{option} {destination} must end in {', '.join(formats)}, or in / for a folder."
            )
        _make_folder(paths[0].parent)
    else:
        folder = Path(destination or ".")
        _make_folder(folder)
        paths = _in_folder(photos, folder, ending)
    overwritten = {photo.resolve() for photo in photos} & {path.resolve() for path in paths}
    if overwritten:
        raise click.UsageError(
            f"{option} would overwrite the image {overwritten.pop()}; give another name."
        )
    return paths


def _means_file(destination: str) -> bool:
    path = Path(destination)
    return bool(path.suffix) and not destination.endswith("/") and not path.is_dir()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"{folder}: the folder cannot be made ({error.strerror})."
        ) from None


def _in_folder(photos: Sequence[Path], folder: Path, ending: str) -> list[Path]:
    """Photos of one name from several folders get numbered results."""
    times: dict[str, int] = {}
    paths = []
    for photo in photos:
        times[photo.stem] = times.get(photo.stem, 0) + 1
        number = "" if times[photo.stem] == 1 else f"-{times[photo.stem]}"
        paths.append(folder / f"{photo.stem}{number}{ending}")
    return paths
