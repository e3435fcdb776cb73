"""One row for each kind of bad argument: the exact message, the same from both backends."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rapkernels import _library, reference
from rapkernels.testing import SAMPLES, Sampler


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def rows(op: str, *cases: tuple[int, Any, str], marks: Any = ()) -> list[Any]:
    return [
        pytest.param(op, position, bad, message, id=f"{op}: {message}", marks=marks)
        for position, bad, message in cases
    ]


STORAGE = "must be float32, float64, float16 or bfloat16, got"
LIKE_X = "must have the dtype of x (Double), got Float"
ONE_EACH = "one entry per sample, got"
MULTIPLE = "must have a multiple of the 3 samples of"
RAP_RULE = "rule must be 'rap' or 'rap_conv', got 'lrp'"
RULE = "rule must be 'rap', 'rap_conv', 'absolute', 'epsilon', 'gamma' or 'alpha_beta', got 'lrp'"
SHARE = "rule must be 'absolute', 'ratio' or 'positive', got 'lrp'"

# x (3, 5, 17), weight (9, 17)
LINEAR: list[tuple[int, Any, str]] = [
    (0, zeros(3, 5, 17, dtype=torch.int64), f"x {STORAGE} Long"),
    (0, zeros(17), "x must have at least 2 dimensions (N, *, I), got 1"),
    (
        0,
        zeros(3, 5, 16),
        "x must have 17 features in its last dimension, as weight [9, 17] needs, got [3, 5, 16]",
    ),
    (1, zeros(9, 17, 1), "weight must have 2 dimensions, got 3"),
    (1, zeros(9, 17, dtype=torch.float32), f"weight {LIKE_X}"),
]
CASES = [
    *rows(
        "relprop_linear",  # x (3, 5, 17), weight (9, 17), relevance (3, 5, 9)
        *LINEAR,
        (2, zeros(3, 5, 9, dtype=torch.float32), f"relevance {LIKE_X}"),
        (2, zeros(3, 5, 8), "relevance must have shape [3, 5, 9], got [3, 5, 8]"),
        (2, zeros(4, 5, 9), f"relevance {MULTIPLE} x, got [4, 5, 9]"),
        (2, zeros(0, 5, 9), f"relevance {MULTIPLE} x, got [0, 5, 9]"),
        (3, zeros(3, dtype=torch.float32), "psi must be float64, got Float"),
        (3, zeros(2), f"psi must have shape [3], {ONE_EACH} [2]"),
        (4, zeros(3, dtype=torch.float32), "scale must be float64, got Float"),
        (4, zeros(3, 1), f"scale must have shape [3], {ONE_EACH} [3, 1]"),
        (5, "lrp", RULE),
        (5, "epsilon", "parameters must be (epsilon) for rule 'epsilon', got 0 entries"),
        (10, zeros(3, 5, 9), "positive and negative must be given together, got positive alone"),
        (11, zeros(3, 5, 9), "positive and negative must be given together, got negative alone"),
        (10, zeros(3, 5, 8), "positive must have shape [3, 5, 9], got [3, 5, 8]"),
        (11, zeros(3, 5, 9, dtype=torch.float32), f"negative {LIKE_X}"),
        (7, zeros(8), "bias must have shape [9], got [8]"),
        (7, zeros(9, 1), "bias must have shape [9], got [9, 1]"),
        (7, zeros(9, dtype=torch.float32), f"bias {LIKE_X}"),
        (8, [0.5], "parameters must be () for rule 'rap', got 1 entries"),
        (9, zeros(3, 5, 8), "z must have shape [3, 5, 9], got [3, 5, 8]"),
        (9, zeros(3, 5, 9, dtype=torch.float32), f"z {LIKE_X}"),
    ),
    *rows(
        "relprop_conv",  # x (3, 6, 9, 7), weight (8, 3, 3, 2), relevance (3, 8, 5, 6)
        (0, zeros(3, 6, 9, 7, dtype=torch.int32), f"x {STORAGE} Int"),
        (0, zeros(6, 9), "x must have 3 to 5 dimensions, got 2"),
        (
            0,
            zeros(3, 4, 9, 7),
            "x must have 6 channels, as weight [8, 3, 3, 2] with 2 groups needs, got [3, 4, 9, 7]",
        ),
        (
            0,
            zeros(3, 6, 9, 1),
            "x must be at least as large as the kernel's reach of 3 in spatial dimension 1 with "
            "its padding, got [3, 6, 9, 1]",
        ),
        (1, zeros(8, 3, 3), "weight must have 4 dimensions, got 3"),
        (1, zeros(8, 3, 3, 2, dtype=torch.float32), f"weight {LIKE_X}"),
        (2, zeros(3, 8, 5, 6, dtype=torch.float32), f"z {LIKE_X}"),
        (2, zeros(3, 8, 5, 7), "z must have shape [3, 8, 5, 6], got [3, 8, 5, 7]"),
        (3, zeros(3, 8, 5, 6, dtype=torch.float32), f"relevance {LIKE_X}"),
        (3, zeros(3, 8, 4, 6), "relevance must have shape [3, 8, 5, 6], got [3, 8, 4, 6]"),
        (3, zeros(7, 8, 5, 6), f"relevance {MULTIPLE} x, got [7, 8, 5, 6]"),
        (4, zeros(4), f"psi must have shape [3], {ONE_EACH} [4]"),
        (5, zeros(4), f"scale must have shape [3], {ONE_EACH} [4]"),
        (6, [1], "stride must have 2 entries, got 1"),
        (6, [0, 1], "stride must be at least 1 in every entry, got [0, 1]"),
        (7, [1, 1], "padding must have 4 entries, got 2"),
        (7, [1, 2, -1, 1], "padding must be at least 0 in every entry, got [1, 2, -1, 1]"),
        (8, [1, 1, 1], "dilation must have 2 entries, got 3"),
        (8, [1, 0], "dilation must be at least 1 in every entry, got [1, 0]"),
        (9, 3, "groups must be positive and divide the 8 output channels of weight, got 3"),
        (9, 0, "groups must be positive and divide the 8 output channels of weight, got 0"),
        (10, "lrp", RULE),
        (10, "gamma", "parameters must be (gamma, stabilizer) for rule 'gamma', got 0 entries"),
        (12, zeros(7), "bias must have shape [8], got [7]"),
        (12, zeros(8, dtype=torch.float32), f"bias {LIKE_X}"),
        (13, [1.0, 0.0], "parameters must be () for rule 'rap_conv', got 2 entries"),
    ),
    *rows(
        "relprop_zbox_linear",  # x (3, 17), weight (9, 17), relevance (3, 9)
        (0, zeros(3, 17, dtype=torch.uint8), f"x {STORAGE} Byte"),
        (
            0,
            zeros(3, 16),
            "x must have 17 features in its last dimension, as weight [9, 17] needs, got [3, 16]",
        ),
        (2, zeros(3, 1, dtype=torch.float32), f"low {LIKE_X}"),
        (2, zeros(3, 2), "low must broadcast to the shape of x [3, 17], got [3, 2]"),
        (3, zeros(1, dtype=torch.float32), f"high {LIKE_X}"),
        (3, zeros(1, 3, 1), "high must broadcast to the shape of x [3, 17], got [1, 3, 1]"),
        (4, zeros(3, 8), "relevance must have shape [3, 9], got [3, 8]"),
        (4, zeros(5, 9), f"relevance {MULTIPLE} x, got [5, 9]"),
        (5, zeros(1), f"psi must have shape [3], {ONE_EACH} [1]"),
        (6, zeros(1), f"scale must have shape [3], {ONE_EACH} [1]"),
        (7, -0.5, "stabilizer must be finite and at least 0, got -0.5"),
        (7, float("inf"), "stabilizer must be finite and at least 0, got inf"),
    ),
    *rows(
        "relprop_zbox_conv",  # x (3, 3, 9, 7), weight (4, 3, 3, 3), relevance (3, 4, 5, 7)
        (0, zeros(3, 3, 9, 7, dtype=torch.bool), f"x {STORAGE} Bool"),
        (
            1,
            zeros(4, 2, 3, 3),
            "x must have 2 channels, as weight [4, 2, 3, 3] with 1 groups needs, got [3, 3, 9, 7]",
        ),
        (
            2,
            zeros(2, 1, 1, 1),
            "low must broadcast to the shape of x [3, 3, 9, 7], got [2, 1, 1, 1]",
        ),
        (3, zeros(2), "high must broadcast to the shape of x [3, 3, 9, 7], got [2]"),
        (4, zeros(3, 4, 5, 6), "relevance must have shape [3, 4, 5, 7], got [3, 4, 5, 6]"),
        (4, zeros(2, 4, 5, 7), f"relevance {MULTIPLE} x, got [2, 4, 5, 7]"),
        (11, -1.0, "stabilizer must be finite and at least 0, got -1"),
        (7, [2], "stride must have 2 entries, got 1"),
        (8, [1, 1], "padding must have 4 entries, got 2"),
        (9, [1], "dilation must have 2 entries, got 1"),
        (10, -1, "groups must be positive and divide the 4 output channels of weight, got -1"),
    ),
    *rows(
        "relprop_equilibrium_linear",  # x (3, 5, 17), weight (9, 17), relevance (6, 5, 9)
        (0, zeros(3, 5, 17, dtype=torch.int64), f"x {STORAGE} Long"),
        (
            0,
            zeros(3, 5, 16),
            "x must have 17 features in its last dimension, as weight [9, 17] needs, "
            "got [3, 5, 16]",
        ),
        (1, zeros(9, 17, dtype=torch.float32), f"weight {LIKE_X}"),
        (
            2,
            zeros(4, 5, 9),
            "relevance must have a multiple of the 3 samples of x, got [4, 5, 9]",
        ),
        (
            2,
            zeros(0, 5, 9),
            "relevance must have a multiple of the 3 samples of x, got [0, 5, 9]",
        ),
        (2, zeros(), "relevance must have shape [3, 5, 9], got []"),
        (3, zeros(3), f"psi must have shape [6], {ONE_EACH} [3]"),
        (4, zeros(6, dtype=torch.float32), "scale must be float64, got Float"),
    ),
    *rows(
        "relprop_equilibrium_conv",  # x (3, 6, 9, 7), weight (8, 3, 3, 2), relevance (6, 8, 5, 6)
        (0, zeros(6, 9), "x must have 3 to 5 dimensions, got 2"),
        (
            0,
            zeros(3, 4, 9, 7),
            "x must have 6 channels, as weight [8, 3, 3, 2] with 2 groups needs, got [3, 4, 9, 7]",
        ),
        (1, zeros(8, 3, 3), "weight must have 4 dimensions, got 3"),
        (2, zeros(6, 8, 5, 6, dtype=torch.float32), f"relevance {LIKE_X}"),
        (
            2,
            zeros(5, 8, 5, 6),
            "relevance must have a multiple of the 3 samples of x, got [5, 8, 5, 6]",
        ),
        (2, zeros(3, 8, 4, 6), "relevance must have shape [3, 8, 5, 6], got [3, 8, 4, 6]"),
        (3, zeros(3), f"psi must have shape [6], {ONE_EACH} [3]"),
        (4, zeros(6, 1), f"scale must have shape [6], {ONE_EACH} [6, 1]"),
        (5, [0, 1], "stride must be at least 1 in every entry, got [0, 1]"),
        (6, [1, 1], "padding must have 4 entries, got 2"),
        (7, [1], "dilation must have 2 entries, got 1"),
        (8, 3, "groups must be positive and divide the 8 output channels of weight, got 3"),
        (9, float("inf"), "ratio must be finite, got inf"),
        (9, float("-inf"), "ratio must be finite, got -inf"),
        (9, float("nan"), "ratio must be finite, got nan"),
    ),
    *rows(
        "relprop_first_linear",  # x (3, 17), weight (9, 17), bias (9,), target (3,), score (3,)
        (0, zeros(3, 1, 17), "x must have 2 dimensions, got 3"),
        (0, zeros(3, 16), "x must have 17 features, as weight [9, 17] needs, got [3, 16]"),
        (1, zeros(17), "weight must have 2 dimensions, got 1"),
        (2, zeros(9, dtype=torch.float32), f"bias {LIKE_X}"),
        (2, zeros(8), "bias must have shape [9], got [8]"),
        (3, zeros(3, dtype=torch.int32), "target must be int64, got Int"),
        (
            3,
            zeros(2, dtype=torch.int64),
            f"target {MULTIPLE} x, got [2]",
        ),
        (4, zeros(3, dtype=torch.float32), f"score {LIKE_X}"),
        (4, zeros(3, 1), "score must have shape [3], got [3, 1]"),
        (5, "lrp", "rule must be 'absolute' or 'author', got 'lrp'"),
    ),
    *rows(  # A target on a device is not read.
        "relprop_first_linear",
        (3, torch.tensor([0, 9, 1]), "target must be between 0 and 8, got 9"),
        (3, torch.tensor([0, 1, -1]), "target must be between 0 and 8, got -1"),
        marks=pytest.mark.cpu_only,
    ),
    *rows(
        "relprop_max_pool",  # x (3, 4, 9, 8), relevance (3, 4, 5, 4)
        (0, zeros(3, 4, 9, 8, dtype=torch.int64), f"x {STORAGE} Long"),
        (0, zeros(3, 4), "x must have 3 to 5 dimensions, got 2"),
        (1, zeros(3, 4, 5), "relevance must have 4 dimensions, got 3"),
        (1, zeros(3, 4, 5, 4, dtype=torch.float32), f"relevance {LIKE_X}"),
        (
            1,
            zeros(3, 5, 5, 4),
            "relevance must have the samples and channels of x [3, 4, 9, 8], got [3, 5, 5, 4]",
        ),
        (1, zeros(3, 4, 4, 4), "relevance must have shape [3, 4, 5, 4], got [3, 4, 4, 4]"),
        (2, zeros(4), f"psi must have shape [3], {ONE_EACH} [4]"),
        (3, zeros(4), f"scale must have shape [3], {ONE_EACH} [4]"),
        (4, [3], "kernel_size must have 2 entries, got 1"),
        (4, [0, 2], "kernel_size must be at least 1 in every entry, got [0, 2]"),
        (5, [2, 2, 2], "stride must have 2 entries, got 3"),
        (6, [-1, 0], "padding must be at least 0 in every entry, got [-1, 0]"),
        (6, [2, 0], "padding must be at most half of kernel_size [3, 2], got [2, 0]"),
        (7, [0, 1], "dilation must be at least 1 in every entry, got [0, 1]"),
        (
            7,
            [6, 1],
            "x must be at least as large as the window's reach of 13 in spatial dimension 0 with "
            "its padding, got [3, 4, 9, 8]",
        ),
    ),
    *rows(
        "relprop_avg_pool",
        (0, zeros(3, 4, 9, 8, 1, 1), "x must have 3 to 5 dimensions, got 6"),
        (1, zeros(3, 4, 5, 5), "relevance must have shape [3, 4, 5, 4], got [3, 4, 5, 5]"),
        (4, [3, 2, 1], "kernel_size must have 2 entries, got 3"),
        (6, [0], "padding must have 2 entries, got 1"),
        (8, "lrp", SHARE),
    ),
    *rows(
        "relprop_adaptive_max_pool",
        (1, zeros(3, 4, 2), "relevance must have 4 dimensions, got 3"),
        (
            1,
            zeros(3, 4, 0, 2),
            "relevance must have at least one position per dimension, got [3, 4, 0, 2]",
        ),
        (2, zeros(3, 1), f"psi must have shape [3], {ONE_EACH} [3, 1]"),
    ),
    *rows(
        "relprop_adaptive_avg_pool",
        (
            1,
            zeros(2, 4, 3, 3),
            "relevance must have the samples and channels of x [3, 4, 9, 7], got [2, 4, 3, 3]",
        ),
        (4, "lrp", SHARE),
    ),
    *rows(
        "relprop_add",  # (3, 4, 5, 3)
        (0, zeros(3, 4, 5, 3, dtype=torch.int64), f"a {STORAGE} Long"),
        (0, zeros(), "a must have at least 1 dimension (N, ...), got 0"),
        (
            1,
            zeros(3, 4, 5, 3, dtype=torch.float32),
            "b must have the dtype of a (Double), got Float",
        ),
        (1, zeros(3, 4, 5, 1), "b must have shape [3, 4, 5, 3], got [3, 4, 5, 1]"),
        (2, zeros(3, 4, 5), "relevance must have shape [3, 4, 5, 3], got [3, 4, 5]"),
        (
            2,
            zeros(5, 4, 5, 3),
            "relevance must have a multiple of the 3 samples of a, got [5, 4, 5, 3]",
        ),
        (3, zeros(3, dtype=torch.float32), "psi must be float64, got Float"),
        (5, "lrp", SHARE),
    ),
    *rows(
        "share_squares",  # (3, 4, 5, 3)
        (0, zeros(3, 4, 5, 3, dtype=torch.int64), f"v {STORAGE} Long"),
        (0, zeros(3), "v must have at least 2 dimensions (N, C, ...), got 1"),
        (
            1,
            zeros(3, 4, 5, 3, dtype=torch.float32),
            "relevance must have the dtype of v (Double), got Float",
        ),
        (1, zeros(3, 4, 5), "relevance must have shape [3, 4, 5, 3], got [3, 4, 5]"),
        (
            1,
            zeros(4, 4, 5, 3),
            "relevance must have a multiple of the 3 samples of v, got [4, 4, 5, 3]",
        ),
        (2, zeros(4), f"psi must have shape [3], {ONE_EACH} [4]"),
        (3, zeros(3, dtype=torch.float32), "scale must be float64, got Float"),
    ),
    *rows(
        "relprop_sharing_conv",  # x (3, 6, 9, 7), weight (8, 3, 3, 2), relevance (3, 8, 5, 6)
        (0, zeros(3, 6, 9, 7, dtype=torch.int32), f"x {STORAGE} Int"),
        (
            0,
            zeros(3, 4, 9, 7),
            "x must have 6 channels, as weight [8, 3, 3, 2] with 2 groups needs, got [3, 4, 9, 7]",
        ),
        (1, zeros(8, 3, 3), "weight must have 4 dimensions, got 3"),
        (2, zeros(8, dtype=torch.float32), f"bias {LIKE_X}"),
        (2, zeros(7), "bias must have shape [8], got [7]"),
        (3, zeros(3, 8, 5, 6, dtype=torch.float32), f"z {LIKE_X}"),
        (3, zeros(6, 8, 5, 6), "z must have shape [3, 8, 5, 6], got [6, 8, 5, 6]"),
        (4, zeros(3, 8, 5, 6, dtype=torch.float32), f"relevance {LIKE_X}"),
        (4, zeros(3, 8, 4, 6), "relevance must have shape [3, 8, 5, 6], got [3, 8, 4, 6]"),
        (
            4,
            zeros(7, 8, 5, 6),
            "relevance must have a multiple of the 3 samples of x, got [7, 8, 5, 6]",
        ),
        (5, zeros(4), f"psi must have shape [3], {ONE_EACH} [4]"),
        (6, zeros(4), f"scale must have shape [3], {ONE_EACH} [4]"),
        (7, [0, 1], "stride must be at least 1 in every entry, got [0, 1]"),
        (8, [1, 1], "padding must have 4 entries, got 2"),
        (9, [1, 1, 1], "dilation must have 2 entries, got 3"),
        (10, 3, "groups must be positive and divide the 8 output channels of weight, got 3"),
    ),
    *rows(
        "relprop_sharing_linear",  # x (3, 5, 17), weight (9, 17), relevance (3, 5, 9)
        (0, zeros(17), "x must have at least 2 dimensions (N, *, I), got 1"),
        (1, zeros(9, 17, 1), "weight must have 2 dimensions, got 3"),
        (2, zeros(9, dtype=torch.float32), f"bias {LIKE_X}"),
        (2, zeros(9, 1), "bias must have shape [9], got [9, 1]"),
        (3, zeros(3, 5, 8), "relevance must have shape [3, 5, 9], got [3, 5, 8]"),
        (
            3,
            zeros(2, 5, 9),
            "relevance must have a multiple of the 3 samples of x, got [2, 5, 9]",
        ),
        (4, zeros(2), f"psi must have shape [3], {ONE_EACH} [2]"),
        (5, zeros(3, 1), f"scale must have shape [3], {ONE_EACH} [3, 1]"),
    ),
    *rows(
        "merge",  # (3, 4, 5, 3)
        (0, zeros(3, dtype=torch.int64), f"values_a {STORAGE} Long"),
        (1, zeros(2), f"psi_a must have shape [3], {ONE_EACH} [2]"),
        (2, zeros(2), f"scale_a must have shape [3], {ONE_EACH} [2]"),
        (
            3,
            zeros(3, 4, 5, 3, dtype=torch.float32),
            "values_b must have the dtype of values_a (Double), got Float",
        ),
        (3, zeros(3, 4, 5), "values_b must have shape [3, 4, 5, 3], got [3, 4, 5]"),
        (4, zeros(2), f"psi_b must have shape [3], {ONE_EACH} [2]"),
        (5, zeros(2), f"scale_b must have shape [3], {ONE_EACH} [2]"),
    ),
    *rows(
        "apply_shift",
        (0, zeros(3, dtype=torch.int64), f"values {STORAGE} Long"),
        (0, zeros(), "values must have at least 1 dimension (N, ...), got 0"),
        (1, zeros(4), f"psi must have shape [3], {ONE_EACH} [4]"),
        (2, zeros(4), f"scale must have shape [3], {ONE_EACH} [4]"),
    ),
    *rows(
        "split_quotient",  # (3, 4, 5, 3)
        (0, zeros(3, dtype=torch.int64), f"z {STORAGE} Long"),
        (1, zeros(3, 4, 5), "a must have shape [3, 4, 5, 3], got [3, 4, 5]"),
        (
            1,
            zeros(3, 4, 5, 3, dtype=torch.float32),
            "a must have the dtype of z (Double), got Float",
        ),
        (2, zeros(3, 4, 5), "relevance must have shape [3, 4, 5, 3], got [3, 4, 5]"),
        (2, zeros(4, 4, 5, 3), f"relevance {MULTIPLE} z, got [4, 4, 5, 3]"),
        (3, zeros(2), f"psi must have shape [3], {ONE_EACH} [2]"),
        (4, "lrp", RAP_RULE),
    ),
    *rows(
        "linear_split",  # x (3, 5, 17), weight (9, 17)
        *LINEAR,
    ),
    *rows(
        "gate",  # (3, 4, 5, 3)
        (0, zeros(3, dtype=torch.int64), f"x {STORAGE} Long"),
        (1, zeros(3, 4, 5, 3, dtype=torch.float32), f"gradient {LIKE_X}"),
        (1, zeros(3, 4), "gradient must have shape [3, 4, 5, 3], got [3, 4]"),
        (1, zeros(4, 4, 5, 3), f"gradient {MULTIPLE} x, got [4, 4, 5, 3]"),
        (2, zeros(2), f"total must have shape [3], {ONE_EACH} [2]"),
        (3, zeros(3, dtype=torch.float32), "scale must be float64, got Float"),
    ),
]


@pytest.mark.parametrize(("name", "position", "bad", "message"), CASES)
def test_message(operations: ModuleType, name: str, position: int, bad: Any, message: str) -> None:
    arguments = list(SAMPLES[name](Sampler()))
    arguments[position] = bad
    with pytest.raises(RuntimeError, match=rf"^{re.escape(f'{name}: {message}')}($|\n)"):
        getattr(operations, name)(*arguments)


@pytest.mark.parametrize(
    ("rule", "parameters", "message"),
    [
        ("epsilon", [-1.0], "must be finite and at least 0, got -1 for epsilon"),
        ("epsilon", [float("nan")], "must be finite and at least 0, got nan for epsilon"),
        ("gamma", [0.25, float("inf")], "must be finite and at least 0, got inf for stabilizer"),
        ("alpha_beta", [1.0, -0.5, 0.0], "must be finite and at least 0, got -0.5 for beta"),
        (
            "alpha_beta",
            [2.0, 1.0],
            "must be (alpha, beta, stabilizer) for rule 'alpha_beta', got 2 entries",
        ),
    ],
)
@pytest.mark.parametrize(("name", "position"), [("relprop_linear", 5), ("relprop_conv", 10)])
def test_parameters(
    operations: ModuleType,
    name: str,
    position: int,
    rule: str,
    parameters: list[float],
    message: str,
) -> None:
    arguments = list(SAMPLES[name](Sampler()))
    arguments[position], arguments[position + 3] = rule, parameters
    with pytest.raises(RuntimeError, match=rf"^{re.escape(f'{name}: parameters {message}')}($|\n)"):
        getattr(operations, name)(*arguments)


@pytest.mark.parametrize("name", ["relprop_avg_pool", "relprop_adaptive_avg_pool", "relprop_add"])
def test_a_negative_stabilizer_is_refused(operations: ModuleType, name: str) -> None:
    message = rf"^{name}: stabilizer must be finite and at least 0, got -0\.5($|\n)"
    with pytest.raises(RuntimeError, match=message):
        getattr(operations, name)(*SAMPLES[name](Sampler()), stabilizer=-0.5)


@pytest.mark.built_extension
def test_without_the_extension_every_operation_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_C", None)
    monkeypatch.setattr(_library, "_import_error", ImportError("undefined symbol: abc"))
    source = Path(reference.__file__).parent.parent / "ops.py"
    spec = importlib.util.spec_from_file_location("ops_without_extension", source)
    assert spec is not None
    assert spec.loader is not None
    ops = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ops)
    for name, sample in SAMPLES.items():
        with pytest.raises(RuntimeError, match="undefined symbol: abc"):
            getattr(ops, name)(*sample(Sampler()))
        assert getattr(ops, name).__doc__


def test_every_operation_has_a_row() -> None:
    assert {case.values[0] for case in CASES} == set(SAMPLES)
