"""Relevance propagation for neural networks as fast, exact native kernels."""

from rapkernels import errors, ops, reference
from rapkernels._library import build_info
from rapkernels._version import __version__
from rapkernels.attribution import RAP, attribute
from rapkernels.relevance import Relevance
from rapkernels.rules import Rule, register_rule, unregister_rule

__all__ = [
    "RAP",
    "Relevance",
    "Rule",
    "__version__",
    "attribute",
    "build_info",
    "errors",
    "ops",
    "reference",
    "register_rule",
    "unregister_rule",
]
