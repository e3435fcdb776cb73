"""Class names: display, look-up, suggestions."""

from __future__ import annotations

import pytest

from rapkernels.labels import ClassNameError, ClassNames, imagenet_class_names

pytestmark = pytest.mark.cpu_only


@pytest.fixture(scope="module")
def names() -> ClassNames:
    return imagenet_class_names()


def test_there_are_1000_different_names(names: ClassNames) -> None:
    assert len(names) == 1000
    assert len({names[index] for index in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("index", "name"), [(285, "Egyptian cat"), (967, "espresso"), (134, "crane bird")]
)
def test_the_shown_name(names: ClassNames, index: int, name: str) -> None:
    assert names[index] == name


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Egyptian cat", 285),
        ("  egyptian   CAT ", 285),
        ("egyptian_cat", 285),
        ("missile", 657),  # a synonym of 744, projectile, as well
        ("projectile", 744),
        ("tabby cat", 281),
        ("construction crane", 517),
    ],
)
def test_find(names: ClassNames, text: str, index: int) -> None:
    assert names.find(text) == index


def test_every_shown_name_is_found(names: ClassNames) -> None:
    assert [names.find(names[index]) for index in range(1000)] == list(range(1000))


def test_an_ambiguous_name_lists_its_classes(names: ClassNames) -> None:
    with pytest.raises(
        ClassNameError,
        match=r"'crane' names 2 classes: crane bird \(134\), construction crane \(517\); give the",
    ):
        names.find("crane")


@pytest.mark.parametrize(
    ("text", "offer"), [("tigercat", r"tiger cat \(282\)"), ("cat", r"Egyptian cat \(285\)")]
)
def test_an_unknown_name_gets_close_matches(names: ClassNames, text: str, offer: str) -> None:
    with pytest.raises(
        ClassNameError, match=f"there is no class '{text}'; close matches: .*{offer}"
    ):
        names.find(text)


@pytest.mark.parametrize("text", ["", "qqqqqq"])
def test_a_name_like_no_other_asks_for_an_index(names: ClassNames, text: str) -> None:
    with pytest.raises(ClassNameError, match="give a class name of the network or an index"):
        names.find(text)


def test_names_of_another_network() -> None:
    digits = ClassNames(["zero", "one", "two"])
    assert digits.find("TWO") == 2
