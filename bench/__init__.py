"""Measurements of rapkernels: cost and memory of whole networks, and of single ops."""
