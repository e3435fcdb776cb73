"""The methods: one file for each, with its explainer and its settings."""

from rapkernels.methods.class_distribution import ClassDistribution
from rapkernels.methods.equilibrium import AttributionEquilibrium
from rapkernels.methods.lrp import LRP
from rapkernels.methods.rap import RAP
from rapkernels.methods.sharing_ratio import SharingRatio

__all__ = ["LRP", "RAP", "AttributionEquilibrium", "ClassDistribution", "SharingRatio"]
