"""Class distributions: what an attribution gives to one class and not to its competitors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from rapkernels import calls, checks, host
from rapkernels.errors import ArgumentError, NonFiniteOutputError
from rapkernels.explainer import Explainer
from rapkernels.findings import Findings
from rapkernels.methods.attribution_base import AttributionBase, Model
from rapkernels.methods.class_competition import Competition, Scale, largest_magnitude
from rapkernels.methods.class_sets import (
    Classes,
    check_top,
    class_table,
    given_classes,
    places,
    probable_classes,
    with_target,
)
from rapkernels.outputs import read_output, select_output
from rapkernels.parts import Whole, parts_of
from rapkernels.targets import Target, Targets, resolve_target, split_targets

# Maps that are held for each class where classes compete: its own, the compared, their exponentials
# and what leads to them.
_COPIES = 6


class ClassDistribution:
    """Attribution by the competition of classes (arXiv 2503.07346), on top of any attribution.

    The maps of several classes are compared element by element, colour channels apart, and the
    target's map is kept where it is stronger than its competitors'. With ``A_k`` the map of class
    k, c the target, s the scale, K classes and ``M`` averaged over the temperatures T::

        M(T) = exp(T |A_c| / s) / sum_k exp(T |A_k| / s)
        V_c  = A_c M  where M - 1/K > tau, 0 elsewhere

    V has the units and signs of the base's maps, is never larger than them, and conserves nothing:
    its sum is not the logit, and a class that wins nowhere gets zeros. A strongly negative element
    wins as well and stays negative; the authors show the positive part only.

    What is certain and what is not: the formula, the automatic set, T = 10 and tau = 0.01 are those
    of the authors' code, the defaults here. The scale is not theirs but inferred: they compare raw
    values (``scale=None``), so that T and tau depend on the base's units, and nothing exceeds tau
    where ``T |A|`` is small. Their project page has signed values in the exponents and T = 1, tau =
    5e-3 (``absolute=False, temperature=1, tau=5e-3, scale=None``). Their second version averages
    over the temperatures 1, 5 and 100; that M is what it averages, before the cut, is inferred.

    Where a base's maps are nearly multiples of one another (RAP's are, of the logits), one class
    wins almost everywhere: the one of the largest magnitude, which may be the least probable class
    of an automatic set by its negative logit (by signed values it is the one of the largest logit).

    Where the base has ``max_memory``, the batch is done in parts in which the maps of all classes
    and their competition fit too.

    It costs K attributions, in one call where the base has ``attribute_targets``, and a forward run
    of the model: of the whole batch where the set is automatic or the target is the predicted
    class, of one sample otherwise, to learn how many classes there are.

    Args:
        base: an explainer of this package, or any object with captum's
            ``attribute(x, target=...)``, or a function ``f(x, target=...)``; it gets targets as
            tensors ``(N,)`` int64, and returns one tensor ``(N, ...)``, not necessarily of the
            shape of ``x``.
        classes: the class set, which must contain the target: K distinct classes, at least 2, for
            all samples, or ``(N, K)``, K for each sample. None for an automatic set, of each
            sample's ``top`` most probable classes and its least probable one, K = ``top + 1``; of
            all C classes where C is smaller. A target that is not among them is put in front, and
            the least probable class leaves so that K stays (the authors' code does the same for
            ``top`` up to 3, and cuts the set to 4 beyond).
        temperature: T, positive; or a list to average over.
        tau: how much the target's share M must exceed 1/K, from 0 to below 1.
        top: how many of the most probable classes an automatic set has, at least 1.
        absolute: whether magnitudes compete, as above, or signed values.
        scale: s: "max" for the largest magnitude in the sample's K maps (any s where they are all
            zero, and V too), a positive number, or None for 1.
        model: returns logits ``(N, C)``; None for the base's ``model``, of which its ``output`` is
            taken, or ``forward_func``. Where it has neither, an automatic set and the predicted
            class need it, and without it classes are not compared with the number of outputs.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or ``base`` is nothing that attributes.
        ArgumentError: an argument has a value that cannot be used, or there is no model where one
            is needed.
    """

    def __init__(
        self,
        base: Any,
        classes: Classes | None = None,
        temperature: float | Sequence[float] = 10.0,
        tau: float = 0.01,
        top: int = 2,
        absolute: bool = True,
        scale: Scale = "max",
        model: Model | None = None,
    ) -> None:
        self._attributions = AttributionBase(base, model)
        self._table = class_table(classes)
        self.competition = Competition(temperature, tau, absolute, scale)
        check_top(top)
        self.base = base
        self.model = self._attributions.model
        self.top = int(top)
        if self._table is None:
            self._needed_model("classes")

    @override
    def __repr__(self) -> str:
        classes = None if self._table is None else self._table.tolist()
        return (
            f"ClassDistribution({self._attributions.name}, classes={classes}, top={self.top}, "
            f"{self.competition!r})"
        )

    @overload
    def attribute(self, x: Tensor, target: Target = None) -> Tensor: ...

    @overload
    def attribute(
        self, x: Tensor, target: Target = None, *, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def attribute(
        self, x: Tensor, target: Target = None, layers: Sequence[str] | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Explain one class of each sample against its competitors.

        Args:
            x: ``(N, ...)``, what the model takes, one tensor; floating-point, finite.
            target: None for the predicted class, an int for all samples, or a list, tuple or tensor
                ``(N,)``.
            layers: paths of modules where the classes compete too, each place with the scale of its
                own maps; for bases with ``attribute_targets``, as the explainers of this package.

        Returns:
            V, ``(N, ...)``, of the shape and dtype of the base's maps, detached. With ``layers`` a
            tuple of it and a dict from path to V there.

        Raises:
            ArgumentError, ArgumentTypeError: an argument cannot be used, or the base returns what
                is no map, or NaN or infinity; the message says why.
            TrainingModeError: the model has BatchNorm or Dropout modules in train mode.
            NonFiniteOutputError: the model's output is NaN or infinite.

        What the base raises and warns of comes through, for each class of the set: a negative
        logit, for example, which the least probable class nearly always has.
        """
        found, inside = self._explain(x, [target], layers)
        if layers is None:
            return found[0]
        return found[0], {path: value[0] for path, value in inside.items()}

    @overload
    def attribute_targets(self, x: Tensor, targets: Targets) -> Tensor: ...

    @overload
    def attribute_targets(
        self, x: Tensor, targets: Targets, *, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def attribute_targets(
        self, x: Tensor, targets: Targets, layers: Sequence[str] | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Explain several classes of each sample; the same as one :meth:`attribute` for each.

        The base's maps are computed once: those of K classes where all targets are in the set. A
        target outside an automatic set has one of its own, as in :meth:`attribute`, and adds a map.

        Args:
            x: as for :meth:`attribute`.
            targets: ``(N, T)``, as a tensor, an array or N lists; or T classes for all samples.
            layers: as for :meth:`attribute`.

        Returns:
            ``(T, N, ...)``; with ``layers`` a tuple of it and a dict from path to the same there.

        Raises:
            As :meth:`attribute`.
        """
        self._check_input(x)
        found, inside = self._explain(x, split_targets(targets, x.shape[0]), layers)
        return found if layers is None else (found, inside)

    def class_sets(self, x: Tensor, target: Target = None) -> Tensor:
        """Return the classes ``(N, K)`` int64 that compete when ``target`` is explained.

        Args:
            x: as for :meth:`attribute`.
            target: as for :meth:`attribute`.

        Raises:
            As :meth:`attribute`.
        """
        self._check_input(x)
        findings = Findings(x.device)
        with calls.settings(x):
            at_once = self._samples_at_once(x, 1, None)
            contest = self._contest(x, [target], findings, at_once)
            findings.settle()
        return contest.sets[0]

    def _explain(
        self, x: Tensor, targets: Sequence[Target], layers: Sequence[str] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self._check_input(x)
        checks.check_layers_form(layers)
        if layers is not None and not self._attributions.is_explainer:
            raise ArgumentError(
                "layers must be None where base has no attribute_targets, got "
                f"{list(layers)} with {self._attributions.name}"
            )
        findings = Findings(x.device)
        at_once = self._samples_at_once(x, len(targets), layers)
        with calls.settings(x):
            contest = self._contest(x, targets, findings, at_once)
            # Before the base runs, which need not check: on a GPU a wrong index ends the process.
            findings.settle()
        parts = list(parts_of(x.shape[0], len(targets), (at_once, len(targets))))
        whole = Whole(x.shape[0], len(targets))
        returned: list[Any] = []
        for part in parts:
            own = contest.of(part.samples)
            # The base runs in the caller's settings: it may be anything.
            maps, inside = self._attributions.maps(
                x[part.samples], own.classes, layers, part.samples.start
            )
            with calls.settings(x):
                found = _decide(self.competition, maps, own, findings)
                found_inside = {
                    path: _decide(self.competition, value, own, findings)
                    for path, value in inside.items()
                }
                del maps, inside
                returned = [found, found_inside]
                if len(parts) > 1:
                    returned = whole.put(part, returned)
        findings.settle()
        found, found_inside = returned
        return found, found_inside

    def _samples_at_once(self, x: Tensor, targets: int, layers: Sequence[str] | None) -> int:
        """How many samples fit the base's ``max_memory``, with the maps that compete."""
        classes = self.top + 1 + targets if self._table is None else self._table.shape[-1]
        return self._attributions.samples_at_once(x, classes, layers, _COPIES)

    def _check_input(self, x: Tensor) -> None:
        # What is no module has no parameters to compare x with.
        module = self.model if isinstance(self.model, nn.Module) else nn.Identity()
        checks.check_eval_mode(module)
        checks.check_input(module, x)

    def _needed_model(self, argument: str) -> Model:
        if self.model is None:
            raise ArgumentError(
                "model must be given where base has neither model nor forward_func and "
                f"{argument} is None, got None"
            )
        return self.model

    def _contest(
        self, x: Tensor, targets: Sequence[Target], findings: Findings, at_once: int
    ) -> _Contest:
        """Resolve the targets, choose the set of each, and which classes need maps."""
        checks.check_finite(x, findings)
        samples, logits, outputs = x.shape[0], None, None
        if self._table is None or any(target is None for target in targets):
            argument = "classes" if self._table is None else "target"
            logits = self._logits(self._needed_model(argument), x, findings, at_once)
            outputs = logits.shape[1]
        elif self.model is not None:
            outputs = self._logits(self.model, x[:1], findings, 1).shape[1]
        # A model that is not known sets no limit.
        shape = torch.Size((samples, outputs or torch.iinfo(torch.int64).max))
        chosen = []
        for target in targets:
            index = resolve_target(target, shape, x.device, findings)
            if index is None:
                assert logits is not None
                index = logits.argmax(1)
            chosen.append(index)
        if self._table is not None:
            given = given_classes(self._table, samples, outputs, x.device, findings)
            for index in chosen:
                _check_contains(given, index, findings)
            return _Contest(given, [given] * len(chosen), chosen)
        assert logits is not None
        return _automatic(probable_classes(logits, self.top), chosen, findings)

    def _logits(self, model: Model, x: Tensor, findings: Findings, at_once: int) -> Tensor:
        """Run the model, in the settings of explainers: they must agree on the predicted class."""
        samples = x.shape[0]
        # A model need not take an empty batch.
        like = x.detach() if samples else x.new_zeros((1, *x.shape[1:]))
        parts = parts_of(like.shape[0], 1, (max(1, at_once), 1))
        found = torch.cat([self._some_logits(model, like[part.samples]) for part in parts])
        logits = found[:samples]
        findings.check(logits, lambda: ~torch.isfinite(logits).all(), _refuse_output)
        return logits

    def _some_logits(self, model: Model, x: Tensor) -> Tensor:
        returned: Any = model(x)
        if isinstance(self.base, Explainer) and model is self.base.model:
            name = type(self.base.model).__name__
            returned = select_output(returned, read_output(self.base.output), name)
        if not isinstance(returned, Tensor):
            raise ArgumentError(
                f"model must return one tensor of logits (N, C), got {type(returned).__name__}"
            )
        shape, wanted = list(returned.shape), x.shape[0]
        if len(shape) < 2 or shape[0] != wanted or returned[0].numel() != shape[1] or shape[1] < 2:
            raise ArgumentError(
                "model must return logits (N, C) of at least 2 classes, but for a batch of "
                f"{wanted} it returns shape {shape}"
            )
        return returned.flatten(1)


class _Contest(NamedTuple):
    """Who competes in one call."""

    classes: Tensor  # (N, U): those that need maps
    sets: list[Tensor]  # (N, K) for each target, of these classes
    targets: list[Tensor]  # (N,) each

    def of(self, samples: slice) -> _Contest:
        """Who competes for some of the samples."""
        classes = self.classes[samples]
        sets = [classes if one is self.classes else one[samples] for one in self.sets]
        return _Contest(classes, sets, [target[samples] for target in self.targets])


def _automatic(probable: Tensor, targets: list[Tensor], findings: Findings) -> _Contest:
    sets = [with_target(probable, target) for target in targets]
    if len(sets) == 1:
        return _Contest(sets[0], sets, targets)
    lacking = [(probable != target[:, None]).all(1).any() for target in targets]
    # Nothing can be read from a stream that is captured: then every target gets a map.
    added = [True] * len(sets) if findings.capturing else host.read_flags(lacking)
    columns = [target[:, None] for target, is_added in zip(targets, added, strict=True) if is_added]
    if not columns:
        return _Contest(probable, [probable] * len(sets), targets)
    return _Contest(torch.cat([probable, *columns], 1), sets, targets)


def _decide(compete: Competition, maps: Tensor, contest: _Contest, findings: Findings) -> Tensor:
    """V ``(T, N, ...)`` from the maps ``(U, N, ...)``."""
    peak = largest_magnitude(maps)
    findings.check(peak, lambda: ~torch.isfinite(peak).all(), _refuse_maps)
    rows = torch.arange(maps.shape[1], device=maps.device)
    found = []
    for classes, target in zip(contest.sets, contest.targets, strict=True):
        compared = maps
        if classes is not contest.classes:
            compared = maps[places(contest.classes, classes).T, rows]
        found.append(compete(compared, places(classes, target[:, None])[:, 0]))
    return torch.stack(found)


def _check_contains(sets: Tensor, target: Tensor, findings: Findings) -> None:
    lacks = (sets != target[:, None]).all(1)

    def complain() -> NoReturn:
        sample = int(lacks.nonzero()[0, 0])
        raise ArgumentError(
            f"classes must contain the target, got {sets[sample].tolist()} without "
            f"{int(target[sample])} for sample {sample}"
        )

    findings.check(lacks, lambda: lacks.any(), complain)


def _refuse_output() -> NoReturn:
    raise NonFiniteOutputError("model must return finite outputs, got NaN or infinity")


def _refuse_maps() -> NoReturn:
    raise ArgumentError("base must return finite maps, got NaN or infinite entries")
