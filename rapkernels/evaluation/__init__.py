"""Metric tables over attribution methods, on photos with boxes, on grids, on small objects.

A table has a row for each method and for each control, a column for each metric:

    preprocessing = classifier.preprocessing
    cases = PhotoCases("photos", preprocessing, read_boxes("photos/boxes.json"))
    table = evaluate(
        classifier.module, cases, choose_methods(None, controls=True), choose_columns(None, True)
    )
    print(table.as_text())
"""

from .boxes import Boxes, LabelledBox, read_boxes
from .cases import Box, Case, Cases, EvaluationError
from .chart import draw_table
from .columns import COLUMNS, Column, Scene, choose_columns
from .controls import CentredDisc, CentredGaussian, RandomMaps
from .grids import GridCases
from .methods import METHODS, MapFunction, Method, Settings, choose_methods
from .photos import PhotoCases
from .run import evaluate, with_targets
from .small import SmallObjectCases
from .table import Cell, Heading, Row, Table

__all__ = [
    "COLUMNS",
    "METHODS",
    "Box",
    "Boxes",
    "Case",
    "Cases",
    "Cell",
    "CentredDisc",
    "CentredGaussian",
    "Column",
    "EvaluationError",
    "GridCases",
    "Heading",
    "LabelledBox",
    "MapFunction",
    "Method",
    "PhotoCases",
    "RandomMaps",
    "Row",
    "Scene",
    "Settings",
    "SmallObjectCases",
    "Table",
    "choose_columns",
    "choose_methods",
    "draw_table",
    "evaluate",
    "read_boxes",
    "with_targets",
]
