"""Activations of any model: what analyses read, of a `Transformer` or of somebody else's module."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.errors import InputError, require, suggest
from mesascope.nn.transformer import RunResult, matching_activations
from mesascope.tasks.sequences import Sequences


@runtime_checkable
class CapturableModel(Protocol):
    """A model whose activations can be read by name; `Transformer` and `HookedModel` are.

    Analyses of the residual stream need `embed`, the stream before the first block, and `blocks.i.resid_post`, the
    stream after block i = 0, 1, ..., all of them `[B, T, d]`. `Transformer.activation_names` lists the other names.
    """

    @property
    def name(self) -> str:
        """A short label for tables and legends."""
        ...

    def activation_names(self) -> list[str]:
        """Every name that `run` can capture, in the order in which they are computed."""
        ...

    def run(self, tokens: Float[Tensor, "batch time n_e"], capture: Sequence[str] = ()) -> RunResult:
        """Predictions together with the activations whose names match those in `capture`."""
        ...


@dataclass(frozen=True)
class InputOf:
    """The first argument of a submodule instead of its output, for streams that no module of their own computes.

    Attributes:
        module: dotted name of the submodule.
    """

    module: str


class HookedModel:
    """Somebody else's module as a `CapturableModel` and a `Predictor`.

    Activations are read by forward hooks that exist only while `run` does, and only for what it captures. The module
    runs in evaluation mode; afterwards every submodule is in the mode in which it was.

    Args:
        module: maps tokens `[B, T, n_e]` to predictions `[B, T, n_s]`, or to a tuple that starts with them.
        points: names of activations and where they are: the dotted name of the submodule that returns it (alone or
            first in a tuple), or `InputOf` a submodule. For the residual stream:
            `{"embed": InputOf("layers.0"), "blocks.0.resid_post": "layers.0", ...}`.
        name: label in tables and legends.
        predictions: reads the predictions off the module's output, where they are not the output or its first entry.

    Raises:
        InputError: `points` names a submodule that does not exist.
    """

    def __init__(
        self,
        module: nn.Module,
        points: Mapping[str, str | InputOf],
        *,
        name: str = "model",
        predictions: Callable[[Any], Tensor] | None = None,
    ) -> None:
        known = dict(module.named_modules())
        for point in points.values():
            dotted = point.module if isinstance(point, InputOf) else point
            if dotted not in known:
                raise InputError(f"points: no submodule is called {dotted!r}; {suggest(dotted, filter(None, known))}")
        self.module, self.points, self.name = module, dict(points), name
        self._read = predictions or _first_tensor

    def activation_names(self) -> list[str]:
        return list(self.points)

    def run(self, tokens: Float[Tensor, "batch time n_e"], capture: Sequence[str] = ()) -> RunResult:
        """Predictions together with named activations; arguments as for `Transformer.run`.

        Raises:
            InputError: a name or pattern matches nothing, the submodule of a captured name ran not at all or more than
                once, or what the module returns are not predictions.
        """
        wanted = matching_activations(self.activation_names(), capture)
        seen: dict[str, list[Tensor]] = {name: [] for name in self.points if name in wanted}
        with _hooks(self.module, {name: self.points[name] for name in seen}, seen), _evaluation_mode(self.module):
            output = self.module(tokens)
        for name, values in seen.items():
            require(len(values) == 1, "points", name, f"computed once per run, but it was {len(values)} times")
        predictions, (batch, time) = self._read(output), tokens.shape[:2]
        fits = predictions.dim() == 3 and predictions.shape[:2] == (batch, time)
        require(fits, "predictions", tuple(predictions.shape), f"of shape [{batch}, {time}, n_s], as the tokens are")
        return RunResult(predictions, {name: values[0] for name, values in seen.items()})

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        """Predictions from `sequences.tokens`, without gradient."""
        return self.run(sequences.tokens).predictions


@dataclass(frozen=True)
class ResidualStream:
    """The residual stream of a model at several depths.

    Attributes:
        labels: of the depths: "Inp." before the first block, "1" after it, and so on.
        values: `[depths, B, T, d]`, without gradient.
        time_steps: of the third axis, counted from 1.
    """

    labels: tuple[str, ...]
    values: Float[Tensor, "depths batch time d"]
    time_steps: tuple[int, ...]

    def layer(self, layer: int) -> "ResidualStream":
        """One depth: 0 for the embedded input, l for the stream after block l.

        Raises:
            InputError: the stream was not read at this depth.
        """
        label = _depth_label(layer)
        require(label in self.labels, "layer", layer, f"at one of the depths {', '.join(self.labels)}")
        index = self.labels.index(label)
        return ResidualStream((label,), self.values[index : index + 1], self.time_steps)


@torch.no_grad()
def residual_stream(
    model: CapturableModel, sequences: Sequences, *, layers: Sequence[int] | None = None, batch_size: int = 256
) -> ResidualStream:
    """The residual stream of a model at the depths asked for.

    Args:
        model: with activations `embed` and `blocks.0.resid_post`, `blocks.1.resid_post`, ...
        sequences: what it reads.
        layers: depths, 0 for the embedded input and l for the stream after block l; None: all of them.
        batch_size: sequences per forward pass.

    Raises:
        InputError: the model is not that deep, lacks one of these activations, or they differ in shape.
    """
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    depth = sum(name.startswith("blocks.") and name.endswith(".resid_post") for name in model.activation_names())
    layers = range(depth + 1) if layers is None else layers
    allowed = f"at least one number between 0 and {depth}"
    require(len(layers) >= 1 and all(0 <= layer <= depth for layer in layers), "layers", list(layers), allowed)
    names = ["embed" if layer == 0 else f"blocks.{layer - 1}.resid_post" for layer in layers]
    parts = []
    for start in range(0, sequences.batch_size, batch_size):
        tokens = sequences.tokens[start : start + batch_size]
        captured = model.run(tokens, names).activations
        shapes = sorted({tuple(captured[name].shape) for name in names})
        alike = len(shapes) == 1 and shapes[0][:2] == tokens.shape[:2] and len(shapes[0]) == 3
        batch, time = tokens.shape[:2]
        require(alike, "model", shapes, f"one whose residual stream has shape [{batch}, {time}, d] at every depth")
        parts.append(torch.stack([captured[name] for name in names]))
    values = torch.cat(parts, dim=1)
    labels = tuple(_depth_label(layer) for layer in layers)
    return ResidualStream(labels, values, tuple(range(1, values.shape[2] + 1)))


def _depth_label(layer: int) -> str:
    return "Inp." if layer == 0 else str(layer)


def _first_tensor(output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor):
        raise InputError(f"module: got an output of type {type(first).__name__}, but it must be a tensor or start so")
    return first


@contextmanager
def _hooks(module: nn.Module, points: Mapping[str, str | InputOf], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """While it lasts, every run of a submodule appends to `seen`; no hook stays behind, also after an error."""

    def attach(name: str, point: str | InputOf) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, arguments: Any, output: Any = None) -> None:
            seen[name].append(_first_tensor(arguments if isinstance(point, InputOf) else output))

        if isinstance(point, InputOf):
            return module.get_submodule(point.module).register_forward_pre_hook(keep)
        return module.get_submodule(point).register_forward_hook(keep)

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name, point in points.items():
            handles.append(attach(name, point))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
