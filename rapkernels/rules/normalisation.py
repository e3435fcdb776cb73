"""Normalisations by statistics of the sample: those are constants, so that relevance passes."""

from __future__ import annotations

from typing import ClassVar

from rapkernels.rules.base import NoRuleError, Site
from rapkernels.rules.elementwise import Identity


class Normalisation(Identity):
    """Layer, group, instance, RMS and local response normalisation."""

    family: ClassVar[str] = "normalisation"
    fresh = True

    def __init__(self, site: Site) -> None:
        if site.node.index not in (None, 0):
            raise NoRuleError("the statistics of a normalisation carry no relevance")
        super().__init__(site)


NORMALISATIONS = tuple(
    f"aten.{name}.default"
    for name in (
        *("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm"),
        *("rms_norm", "_fused_rms_norm"),
    )
)
