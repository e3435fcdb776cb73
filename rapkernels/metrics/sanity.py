"""Whether maps depend on what the model has learned: parameter randomisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rapkernels import checks
from rapkernels.errors import ArgumentError, ArgumentTypeError
from rapkernels.metrics.decisions import check_images, classes_of, logits_of
from rapkernels.metrics.maps import to_map
from rapkernels.metrics.similarity import cosine_similarity, rank_correlation
from rapkernels.targets import Target

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]
Initialise = Literal["reset_parameters", "xavier_uniform"] | Callable[[nn.Module], None]


class RandomisationStage(NamedTuple):
    """How like the original maps those of a partly randomised model are.

    Attributes:
        layer: path of the module that was re-initialised last; all stages before count too.
        spearman: ``(N,)``, float64, :func:`rank_correlation` with the original maps.
        cosine: ``(N,)``, float64, :func:`cosine_similarity` with the original maps.
    """

    layer: str
    spearman: Tensor
    cosine: Tensor


def randomisation(
    model: nn.Module,
    explain: Explain,
    x: Tensor,
    target: Target = None,
    layers: Sequence[str] | None = None,
    initialise: Initialise = "reset_parameters",
    absolute: bool = False,
    seed: int = 0,
) -> Iterator[RandomisationStage]:
    """Cascading randomisation of the parameters, from the output down to the input.

    The sanity check of Adebayo et al. (NeurIPS 2018): a copy of the model is re-initialised layer
    after layer, each stage on top of those before, and its maps are compared with those of the
    model itself. Maps that stay alike do not explain what the model has learned. Maps of the same
    target are compared throughout, also where the randomised model predicts another class.

    How a layer is re-initialised is not the same everywhere. The default, the module's own
    ``reset_parameters``, is where torch starts to train it, is defined for every layer of torch,
    BatchNorm included (whose running statistics go back to 0 and 1), and is what Quantus does.
    "xavier_uniform" is what the authors of Attribution Equilibrium (Nam et al., TPAMI 2024) do:
    weights of at least two dimensions Xavier-uniform, biases uniform in [0, 1), other layers as
    before. What ``reset_parameters`` leaves alone, or what has none, is shuffled: its entries stay
    and lose their places.

    Args:
        model: in eval mode; not modified.
        explain: called as ``explain(model, x, target)`` with the copy and the int64 targets
            ``(N,)``; returns a relevance ``(N, C, H, W)`` or a map ``(N, H, W)``.
            ``rapkernels.attribute`` is such a function. The copy stays one module and is changed in
            place, so the parameters must be read anew at each call.
        x: ``(N, C, H, W)``, finite, at least one sample.
        target: None for the class that ``model`` predicts, an int for all samples, or a list, tuple
            or tensor ``(N,)``.
        layers: paths of modules, in the order in which to randomise them; a module without
            parameters of its own stands for all below it. None takes
            :func:`randomisation_layers`.
        initialise: "reset_parameters", "xavier_uniform", or a function that re-initialises the
            module it is given (its own parameters, not those of modules below).
        absolute: compare absolute maps. A randomised model's logit may be negative, which turns a
            map of relevance upside down.
        seed: of the random numbers; torch's own state is left as it was.

    Returns:
        An iterator over the stages; each is computed when it is asked for.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: an argument has the wrong shape or value, a path in ``layers`` is unknown or
            has no parameters, or ``explain`` returns another shape or what is not finite.
        TrainingModeError: the model is in train mode with layers that behave differently there.
    """
    check_images(model, x)
    _check_form(explain, layers, initialise, seed)
    randomised = copy.deepcopy(model)
    paths = randomisation_layers(model, x) if layers is None else layers
    parts = [(path, _parts(randomised, path)) for path in paths]
    targets = classes_of(target, logits_of(randomised, x, len(x)))

    def maps() -> Tensor:
        found = to_map(explain(randomised, x, targets))
        if len(found) != len(x):
            raise ArgumentError(
                f"explain must return one map per sample, {len(x)}, got {len(found)}"
            )
        return found.abs() if absolute else found

    return _stages(parts, maps, initialise, seed)


def randomisation_layers(model: nn.Module, x: Tensor) -> list[str]:
    """The modules with parameters of their own, in the order of :func:`randomisation`.

    That is from the output down: the module whose forward ends last comes first. A module that is
    not called itself, its parameters being used by the module around it, takes that one's place.

    Args:
        model: in eval mode; not modified.
        x: ``(N, C, H, W)``; its first sample is run through a copy of the model.

    Returns:
        Paths as in ``model.named_modules()``.

    Raises:
        As :func:`randomisation`.
    """
    check_images(model, x)
    traced = copy.deepcopy(model)
    calls: list[str] = []

    def note(path: str) -> Callable[..., None]:
        return lambda *_: calls.append(path)

    for path, module in traced.named_modules():
        module.register_forward_hook(note(path))
    logits_of(traced, x[:1], 1)
    ends = {path: place for place, path in enumerate(calls)}
    paths = [path for path, module in traced.named_modules() if _has_parameters(module)]
    if not paths:
        raise ArgumentError("model must have parameters to randomise, got none")
    return sorted(paths, key=lambda path: _end(path, ends))[::-1]


def _end(path: str, ends: dict[str, int]) -> int:
    """When the module's forward ended, or that of the nearest around it that was called."""
    while path not in ends:
        path = path.rpartition(".")[0]
    return ends[path]


def _stages(
    parts: list[tuple[str, list[nn.Module]]],
    maps: Callable[[], Tensor],
    initialise: Initialise,
    seed: int,
) -> Iterator[RandomisationStage]:
    original = maps()
    for stage, (path, modules) in enumerate(parts):
        _randomise(modules, initialise, seed + stage)
        found = maps()
        yield RandomisationStage(
            path, rank_correlation(original, found), cosine_similarity(original, found)
        )


def _randomise(modules: list[nn.Module], initialise: Initialise, seed: int) -> None:
    # Seeding reaches every device there is, but starts none.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for module in modules:
            if callable(initialise):
                initialise(module)
            else:
                _reset(module)
                if initialise == "xavier_uniform":
                    _xavier_uniform(module)


def _reset(module: nn.Module) -> None:
    """Re-initialise a module's own parameters; shuffle those that are left as they were."""
    before = {name: (p, p._version) for name, p in module._parameters.items() if p is not None}
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    for name, (parameter, version) in before.items():
        if module._parameters[name] is parameter and parameter._version == version:
            places = torch.randperm(parameter.numel(), device=parameter.device)
            parameter.copy_(parameter.flatten()[places].view_as(parameter))


def _xavier_uniform(module: nn.Module) -> None:
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is not None and weight.dim() >= 2:
        nn.init.xavier_uniform_(weight)
        if bias is not None:
            nn.init.uniform_(bias)


def _has_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def _parts(model: nn.Module, path: str) -> list[nn.Module]:
    modules = dict(model.named_modules())
    if path not in modules:
        raise ArgumentError(f"layers must name modules of the model, got {path!r}")
    if _has_parameters(modules[path]):
        return [modules[path]]
    below = [module for module in modules[path].modules() if _has_parameters(module)]
    if not below:
        raise ArgumentError(
            f"layers must name modules with parameters, got {path!r}, which has none"
        )
    return below


def _check_form(explain: Any, layers: Any, initialise: Any, seed: Any) -> None:
    if not callable(explain):
        raise ArgumentTypeError(
            f"explain must be a function of (model, x, target), got {type(explain).__name__}"
        )
    if layers is not None and not isinstance(layers, list | tuple):
        raise ArgumentTypeError(
            f"layers must be a list of module paths or None, got {type(layers).__name__}"
        )
    checks.check_layers_form(layers)
    if not callable(initialise):
        checks.check_choice("initialise", initialise, ("reset_parameters", "xavier_uniform"))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentTypeError(f"seed must be an int, got {type(seed).__name__}")
