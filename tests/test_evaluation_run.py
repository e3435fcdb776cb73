"""From cases and methods to a table: values, controls, notes, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels import metrics
from rapkernels.evaluation import (
    COLUMNS,
    METHODS,
    Case,
    EvaluationError,
    Method,
    Settings,
    choose_columns,
    choose_methods,
    evaluate,
    with_targets,
)
from rapkernels.evaluation.run import Table

pytestmark = [pytest.mark.cpu_only, pytest.mark.usefixtures("one_thread")]

CLASSES = 5


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, CLASSES),
    ).eval()


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(7):
        mask = torch.zeros(16, 16, dtype=torch.bool)
        mask[2 + index : 8 + index, 4:12] = True
        pixels = torch.randn(3, 16, 16, generator=generator)
        found.append(Case(f"case {index}", pixels, index % CLASSES, mask, (index % CLASSES,)))
    return found


def without_time(table: Table) -> dict[str, dict[str, float]]:
    return {
        row.name: {name: cell.mean for name, cell in row.cells.items() if name != "seconds"}
        for row in table.rows
    }


ALL = choose_columns(None, masks=True)


def test_a_table_has_all_methods_all_controls_and_all_metrics(
    network: nn.Module, cases: list[Case]
) -> None:
    steps: list[int] = []
    table = evaluate(
        network,
        cases,
        choose_methods(["rap"], controls=True),
        ALL,
        title="t",
        progress=steps.append,
    )
    assert [row.name for row in table.rows] == ["rap", "disc", "gaussian", "random"]
    assert [row.control for row in table.rows] == [False, True, True, True]
    assert [heading.name for heading in table.headings] == [*COLUMNS, "seconds"]
    assert (table.title, table.images) == ("t", 7)
    assert all(cell.images == 7 for row in table.rows for cell in row.cells.values())
    assert all(row.cells["seconds"].mean > 0 for row in table.rows)
    assert sum(steps) == 4 * 7


def test_the_values_are_those_of_the_metrics(network: nn.Module, cases: list[Case]) -> None:
    table = evaluate(network, cases, choose_methods(["rap"], controls=False), ALL, batch_size=3)
    cells = table.rows[0].cells
    x = torch.stack([case.pixels for case in cases])
    masks = torch.stack([case.mask for case in cases if case.mask is not None])
    targets = torch.tensor([case.target for case in cases])
    explainer = rk.RAP(network)
    with pytest.warns(rk.errors.NonPositiveTargetWarning):
        maps = metrics.to_map(explainer.attribute(x, target=targets))
    share = metrics.region_attribution(maps, masks)
    # Batches of other sizes round differently in float32.
    assert cells["region_attribution"].mean == pytest.approx(share.mean().item(), rel=1e-4)
    error = share.std().item() / 7**0.5
    assert cells["region_attribution"].standard_error == pytest.approx(error, rel=1e-3)
    curve = metrics.insertion(network, x, maps, steps=20, target=targets)
    assert cells["insertion"].mean == pytest.approx(metrics.auc(curve).mean().item(), rel=1e-3)
    with torch.no_grad():
        rivals = network(x).scatter(1, targets[:, None], -torch.inf).argmax(1)
    others = metrics.to_map(explainer.attribute(x, target=rivals))
    alike = metrics.map_correlation(maps, others).mean().item()
    assert cells["class_correlation"].mean == pytest.approx(alike, abs=1e-4)


def test_the_order_of_perturbation_matters(network: nn.Module, cases: list[Case]) -> None:
    columns = choose_columns(["morf", "lerf", "insertion", "deletion"], masks=False)
    table = evaluate(network, cases, choose_methods(["input_x_gradient"], False), columns)
    cells = table.rows[0].cells
    assert cells["morf"].mean > cells["lerf"].mean
    assert cells["insertion"].mean > cells["deletion"].mean


def test_controls_know_no_class_or_only_chance(network: nn.Module, cases: list[Case]) -> None:
    columns = choose_columns(["class_correlation"], masks=True)
    values = without_time(evaluate(network, cases, choose_methods([], controls=True), columns))
    assert values["disc"]["class_correlation"] == pytest.approx(1.0)
    assert values["gaussian"]["class_correlation"] == pytest.approx(1.0)
    # The mean of seven correlations of 256 independent pixels: a standard deviation of 0.024.
    assert abs(values["random"]["class_correlation"]) < 0.12


def test_batches_and_runs_do_not_change_the_table(network: nn.Module, cases: list[Case]) -> None:
    methods = choose_methods(["rap"], controls=True)
    tables = [
        without_time(evaluate(network, cases, methods, ALL, batch_size=size)) for size in (7, 7, 2)
    ]
    assert tables[0] == tables[1]
    for name, values in tables[0].items():
        # Float32 convolutions of other batch sizes; steps of a threshold may fall differently.
        assert tables[2][name] == pytest.approx(values, abs=2e-3), name


def test_another_seed_changes_the_random_maps_alone(network: nn.Module, cases: list[Case]) -> None:
    methods = choose_methods(["input_x_gradient"], controls=True)
    first, second = (
        without_time(evaluate(network, cases, methods, ALL, settings=Settings(seed=seed)))
        for seed in (0, 1)
    )
    assert {name for name in first if first[name] != second[name]} == {"random"}


def test_without_classes_the_predicted_one_is_explained(
    network: nn.Module, cases: list[Case]
) -> None:
    unlabelled = [replace(case, target=None, classes=()) for case in cases]
    filled = with_targets(network, unlabelled, batch_size=2)
    with torch.no_grad():
        predicted = network(torch.stack([case.pixels for case in cases])).argmax(1).tolist()
    assert [case.target for case in filled] == predicted
    assert [case.classes for case in filled] == [(label,) for label in predicted]
    columns = choose_columns(["gini", "region_attribution"], masks=True)
    tables = [
        evaluate(network, given, choose_methods(["rap"], False), columns)
        for given in (unlabelled, filled)
    ]
    assert without_time(tables[0]) == without_time(tables[1])
    assert "The predicted class is explained for 7." in tables[0].notes
    assert (
        "The network's first choice is a class that is said to be there for 7 of 7."
        in tables[1].notes
    )


def test_a_logit_that_is_not_positive_is_counted(network: nn.Module, cases: list[Case]) -> None:
    with torch.no_grad():
        logits = network(torch.stack([case.pixels for case in cases]))
    worst = [
        replace(case, target=int(row.argmin())) for case, row in zip(cases, logits, strict=True)
    ]
    count = int((logits.amin(1) <= 0).sum())
    assert count
    table = evaluate(network, worst, choose_methods([], True), choose_columns(["gini"], False))
    assert any(f"a logit that is not positive for {count}: " in note for note in table.notes)


def test_cases_of_several_classes_hand_them_to_the_method(
    network: nn.Module, cases: list[Case]
) -> None:
    seen: list[tuple[list[int], list[list[int]]]] = []

    def explain(x: Tensor, targets: Tensor, classes: Tensor | None = None) -> Tensor:
        assert classes is not None
        seen.append((targets.tolist(), classes.tolist()))
        return x.sum(1)

    method = Method("spy", "spy", lambda *_: explain)
    shown = [replace(case, target=1, classes=(1, 3)) for case in cases]
    evaluate(network, shown, [method], choose_columns(["class_correlation"], False), batch_size=7)
    # To warm up, the class itself, and the other class that is shown.
    assert seen == [([1], [[1, 3]]), ([1] * 7, [[1, 3]] * 7), ([3] * 7, [[1, 3]] * 7)]


def test_maps_are_cut_at_zero_or_at_their_mean(network: nn.Module, cases: list[Case]) -> None:
    ramp = torch.linspace(0.0, 1.0, 256).view(16, 16)
    right = replace(cases[0], mask=ramp > 0.5)
    columns = choose_columns(["pixel_accuracy", "mean_iou"], masks=True)
    for shift in (0.0, -0.5):
        method = Method("ramp", "ramp", lambda *_, by=shift: lambda *_: (ramp + by)[None])
        cells = evaluate(network, [right], [method], columns).rows[0].cells
        assert cells["pixel_accuracy"].mean == cells["mean_iou"].mean == 1.0


def test_pointing_beside_another_class_is_a_miss(network: nn.Module, cases: list[Case]) -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    peak = torch.zeros(1, 16, 16)
    peak[0, 8, 8] = 1.0
    method = Method("peak", "peak", lambda *_: lambda *_: peak)
    columns = choose_columns(["pointing_game"], masks=True)
    for classes, hits in (((1,), 1.0), ((1, 2), 0.0)):
        case = replace(cases[0], target=1, mask=mask, classes=classes)
        table = evaluate(network, [case], [method], columns)
        assert table.rows[0].cells["pointing_game"].mean == hits


def test_what_cannot_be_evaluated(network: nn.Module, cases: list[Case]) -> None:
    methods, gini = choose_methods(["rap"], False), choose_columns(["gini"], False)
    with pytest.raises(EvaluationError, match="nothing to evaluate: no cases"):
        evaluate(network, [], methods, gini)
    with pytest.raises(
        EvaluationError, match=r"case 0: the class must be between 0 and 4 .* got 5"
    ):
        evaluate(network, [replace(cases[0], target=5)], methods, gini)
    with pytest.raises(EvaluationError, match="cases must have one shape, got"):
        evaluate(network, [cases[0], replace(cases[1], pixels=torch.zeros(3, 8, 8))], methods, gini)
    with pytest.raises(EvaluationError, match=r"mask must have the size of the image, \(16, 16\)"):
        evaluate(network, [replace(cases[0], mask=torch.ones(8, 8) > 0)], methods, gini)
    with pytest.raises(EvaluationError, match="a case has no mask"):
        evaluate(network, [replace(cases[0], mask=None)], methods, ALL)
    with pytest.raises(EvaluationError, match=r"must return logits \(N, classes\), got \(1, 3, 1"):
        evaluate(nn.ReLU(), cases[:1], methods, gini)
    with pytest.raises(rk.errors.ArgumentTypeError, match="model must be a torch"):
        evaluate(torch.relu, cases, methods, gini)  # type: ignore[arg-type]
    small = Method("small", "small", lambda *_: lambda x, *_: x.sum(1)[:, :8])
    with pytest.raises(EvaluationError, match=r"maps must have shape \(1, 16, 16\), got \(1, 8, 1"):
        evaluate(network, cases[:1], [small], gini)


def test_names_of_methods_and_metrics() -> None:
    assert [m.name for m in choose_methods(None, controls=False)] == [
        name for name, method in METHODS.items() if not method.control
    ]
    chosen = choose_methods(["disc", "rap", "rap"], controls=True)
    assert [m.name for m in chosen] == ["rap", "disc", "gaussian", "random"]
    with pytest.raises(EvaluationError, match="there is no method 'cam'; the methods are rap, "):
        choose_methods(["cam"], controls=True)
    with pytest.raises(EvaluationError, match="there is no metric 'f1'; the metrics are region_at"):
        choose_columns(["f1"], masks=True)
    with pytest.raises(EvaluationError, match="the metric mean_iou needs boxes"):
        choose_columns(["mean_iou"], masks=False)
    assert not any(column.needs_masks for column in choose_columns(None, masks=False))


def test_input_x_gradient_is_torch_s(network: nn.Module, cases: list[Case]) -> None:
    x = torch.stack([case.pixels for case in cases]).requires_grad_(True)
    targets = torch.arange(7) % CLASSES
    network(x)[torch.arange(7), targets].sum().backward()
    assert x.grad is not None
    explain = METHODS["input_x_gradient"].build(network, Settings())
    with torch.no_grad():
        maps = explain(x.detach(), targets)
    torch.testing.assert_close(maps, (x.grad * x).detach().double().sum(1))
