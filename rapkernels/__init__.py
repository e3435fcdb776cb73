"""Relevance propagation for neural networks as fast, exact native kernels."""

from rapkernels import composites, errors, metrics, ops, reference
from rapkernels._library import build_info
from rapkernels._version import __version__
from rapkernels.activation_patterns import activation_pattern_prediction
from rapkernels.attribution import attribute
from rapkernels.masked_target import MaskedTarget
from rapkernels.methods import LRP, RAP, AttributionEquilibrium, ClassDistribution, SharingRatio
from rapkernels.relevance import Relevance
from rapkernels.rules import Rule, register_rule, unregister_rule

__all__ = [
    "LRP",
    "RAP",
    "AttributionEquilibrium",
    "ClassDistribution",
    "MaskedTarget",
    "Relevance",
    "Rule",
    "SharingRatio",
    "__version__",
    "activation_pattern_prediction",
    "attribute",
    "build_info",
    "composites",
    "errors",
    "metrics",
    "ops",
    "reference",
    "register_rule",
    "unregister_rule",
]
