"""Metrics of relevance maps: one value per sample, or one curve.

All take a batch of maps ``(N, H, W)``, which :func:`to_map` makes of a relevance ``(N, C, H, W)``,
and return float64 on the device of the maps. Where the object is, is said by bool masks
``(N, H, W)`` or by one box ``[x0, y0, x1, y1]`` per sample (:func:`box_masks`).
"""

from rapkernels.metrics.curves import aopc, auc, deletion, insertion, perturbation
from rapkernels.metrics.localisation import outside_inside_ratio, pointing_game, region_attribution
from rapkernels.metrics.maps import to_map
from rapkernels.metrics.masks import box_masks, grid_masks
from rapkernels.metrics.sanity import RandomisationStage, randomisation, randomisation_layers
from rapkernels.metrics.segmentation import mean_iou, pixel_accuracy
from rapkernels.metrics.similarity import cosine_similarity, map_correlation, rank_correlation
from rapkernels.metrics.sparseness import gini

__all__ = [
    "RandomisationStage",
    "aopc",
    "auc",
    "box_masks",
    "cosine_similarity",
    "deletion",
    "gini",
    "grid_masks",
    "insertion",
    "map_correlation",
    "mean_iou",
    "outside_inside_ratio",
    "perturbation",
    "pixel_accuracy",
    "pointing_game",
    "randomisation",
    "randomisation_layers",
    "rank_correlation",
    "region_attribution",
    "to_map",
]
