"""Linearisation: one attention layer of a model at a time replaced by a linear one that imitates it.

A layer that linear attention can replace at little cost does nothing that needs another kind of attention.

Source: arXiv 2309.05858, Figs. 5A and 19, eq. 70. Differences from the paper: (1) its equation misses the square of the
error; (2) a linear layer sees the activation behind the LayerNorm, as the original does, and imitates the attention
alone, not the MLP behind it; (3) W_Q, W_K and W_V are trained by Adam, but the output projection P, in which the
problem is linear, is solved for at every step. On a 7-layer softmax model 300 such steps reach the errors of 950 steps
of Adam on all four matrices.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.errors import require
from mesascope.figures import Array, Figure, Line, LinePanel, Table
from mesascope.nn import Linear, LinearAttention, Transformer, attention_layers, sinusoidal_positions
from mesascope.tasks import Dynamics, Sequences
from mesascope.uncover.comparison import loss_curves
from mesascope.uncover.moments import RunningMoments


@dataclass(frozen=True)
class Distillation:
    """How linear layers are trained: on fresh sequences, all layers of a model side by side.

    Attributes:
        steps: steps of Adam on W_Q, W_K and W_V.
        batch_size: sequences per step.
        learning_rate: of the first step, in units of the standard deviation of the initial weights; it decays to zero
            along a cosine.
        memory: by how much the sums from which P is solved fade per step. The P of a single batch fits its sequences
            too closely, and that of long ago belongs to other weights.
        final_batches: batches on which P is solved for in the end, when the other weights no longer change.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 0.15
    memory: float = 0.95
    final_batches: int = 16

    def __post_init__(self) -> None:
        for argument in ("steps", "batch_size", "final_batches"):
            require(getattr(self, argument) >= 1, argument, getattr(self, argument), "at least 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "greater than 0")
        require(0 <= self.memory < 1, "memory", self.memory, "in [0, 1)")


@dataclass(frozen=True)
class Linearisation:
    """What replacing single layers costs.

    Attributes:
        original: mean loss of the model.
        replaced: mean loss of the model with one linear layer, `[layers]`.
        errors: squared error of each linear layer over that of predicting zero, on the same sequences, `[layers]`.
    """

    original: float
    replaced: Array
    errors: Array

    @property
    def ratios(self) -> Array:
        """Loss with a linear layer over that of the original, `[layers]`."""
        return self.replaced / self.original

    def table(self, id: str, title: str) -> Table:
        """One row per layer."""
        numbers = zip(self.replaced, self.ratios, self.errors, strict=True)
        rows = tuple((layer + 1, *(float(number) for number in row)) for layer, row in enumerate(numbers))
        return Table(
            id, title, ("layer", "loss when linear", "divided by the original", "relative squared error"), rows
        )

    def figure(self, id: str, title: str, caption: str) -> Figure:
        """The ratios over the layers."""
        layers = torch.arange(1, len(self.replaced) + 1).double().numpy()
        line = Line("one linear layer", layers, self.ratios)
        return Figure(id, title, caption, (LinePanel(title, "layer", "loss / loss of the original", (line,)),), 1)


def linearise(
    model: Transformer, task: Dynamics, generator: torch.Generator, settings: Distillation = Distillation()
) -> tuple[LinearAttention, ...]:
    """Linear layers that imitate the attention layers of a model, each in its place.

    The problem has local minima: an error is an upper bound on that of the best linear layer.

    Args:
        model: the original; one forward pass per step serves all of its layers.
        task: draws the sequences.
        generator: draws the initial weights and the sequences.
        settings: how the layers are trained.

    Returns:
        One layer per layer of the model, with its numbers of heads and features, in its dtype.
    """
    dtype = next(model.parameters()).dtype
    students = [_Student(_initial_layer(model, index, generator).to(dtype)) for index in range(len(model.blocks))]
    trained = [weight for student in students for weight in student.trained]
    optimiser = torch.optim.Adam(trained, lr=settings.learning_rate / model.config.width**0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        optimiser.zero_grad()
        batch = task.sample(settings.batch_size, generator, dtype=dtype)
        for student, example in zip(students, _examples(model, batch), strict=True):
            student.forget(settings.memory)
            student.loss(*example).backward()
        optimiser.step()
        schedule.step()
    return _with_final_outputs(students, model, task, generator, settings)


def same_weights_linear(
    model: Transformer, task: Dynamics, generator: torch.Generator, settings: Distillation = Distillation()
) -> tuple[LinearAttention, ...]:
    """Linear layers with the W_Q, W_K and W_V of the attention layers of a model, and the P with the least error.

    A control for `linearise`, which starts from random weights: where it has the larger error, it has ended in a local
    minimum. Arguments as there; only `batch_size` and `final_batches` of the settings count.
    """
    students = []
    for index, original in enumerate(attention_layers(model)):
        layer = _initial_layer(model, index, generator).to(original.P.dtype)
        with torch.no_grad():
            for name in ("W_Q", "W_K", "W_V"):
                getattr(layer, name).copy_(getattr(original, name))
        students.append(_Student(layer))
    return _with_final_outputs(students, model, task, generator, settings)


def replace_attention(model: Transformer, layer: int, attention: LinearAttention) -> Transformer:
    """A copy of `model` with another attention layer in block `layer`, counted from 0.

    Raises:
        InputError: the model is not that deep, or the layer has another width.
    """
    depth = len(model.blocks)
    require(0 <= layer < depth, "layer", layer, f"between 0 and {depth - 1}")
    width = model.config.width
    require(attention.width == width, "attention.width", attention.width, f"{width}, the width of the model")
    changed = copy.deepcopy(model)
    changed.blocks[layer].attn = copy.deepcopy(attention)
    kinds = list(model.config.attention)
    kinds[layer] = Linear()
    changed.config = replace(model.config, attention=tuple(kinds))
    changed.name = f"{model.name}, layer {layer + 1} linear"
    return changed


def linearisation_losses(
    model: Transformer, layers: Sequence[LinearAttention], batches: Sequence[Sequences]
) -> Linearisation:
    """The loss of a model with each of its layers replaced in turn, on the same sequences as its own.

    Args:
        model: the original.
        layers: what `linearise` returned for it.
        batches: sequences that nothing was trained on.

    Raises:
        InputError: another number of layers than the model has, or no batches.
    """
    require(len(layers) == len(model.blocks), "layers", len(layers), f"{len(model.blocks)}, one per layer of the model")
    models = [model, *(replace_attention(model, index, layer) for index, layer in enumerate(layers))]
    losses = loss_curves(models, batches).overall
    squares = RunningMoments()
    with torch.no_grad():
        for sequences in batches:
            pairs = zip(layers, _examples(model, sequences), strict=True)
            errors = [((layer(x, positions) - y), y) for layer, (x, y, positions) in pairs]
            per_sequence = [[part.double().square().sum((1, 2)) for part in pair] for pair in errors]
            squares.add(torch.stack([torch.stack(pair, -1) for pair in per_sequence], 1).numpy())
    return Linearisation(float(losses[0]), losses[1:], squares.mean[:, 0] / squares.mean[:, 1])


@torch.no_grad()
def _examples(model: Transformer, sequences: Sequences) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Input, output and positions of every attention layer."""
    names = [f"blocks.{index}.attn.{end}" for index in range(len(model.blocks)) for end in ("in", "out")]
    found = model.run(sequences.tokens, names).activations
    examples = []
    for index, layer in enumerate(attention_layers(model)):
        x, y = found[f"blocks.{index}.attn.in"], found[f"blocks.{index}.attn.out"]
        width = layer.position_dim
        examples.append((x, y, sinusoidal_positions(x.shape[1], width).to(x) if width else None))
    return examples


class _Student:
    """A linear layer in training: its P is the least-squares solution for the sums of moments it has seen."""

    def __init__(self, layer: LinearAttention) -> None:
        self.layer = layer
        self.trained = (layer.W_Q, layer.W_K, layer.W_V)
        features = layer.P.shape[1]
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.cross = torch.zeros(features, layer.width, dtype=torch.float64)

    def forget(self, memory: float) -> None:
        """Let the sums fade."""
        self.gram, self.cross = memory * self.gram, memory * self.cross

    def loss(self, x: Tensor, y: Tensor, positions: Tensor | None) -> Tensor:
        """Squared error over that of predicting zero, after P has been solved for with these sequences added."""
        mixed = self.layer.attend(*self.layer.project(x, positions)).flatten(-2)
        self._solve(mixed.detach().double().flatten(0, 1), y.double().flatten(0, 1))
        return (nn.functional.linear(mixed, self.layer.P.detach()) - y).square().sum() / y.square().sum()

    @torch.no_grad()
    def _solve(self, features: Float[Tensor, "rows features"], targets: Float[Tensor, "rows d"]) -> None:
        self.gram, self.cross = self.gram + features.T @ features, self.cross + features.T @ targets
        # where features are redundant, the smallest of the solutions
        ridge = 1e-9 * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)
        self.layer.P.copy_(torch.linalg.solve(self.gram + ridge, self.cross).T)


@torch.no_grad()
def _with_final_outputs(
    students: Sequence[_Student],
    model: Transformer,
    task: Dynamics,
    generator: torch.Generator,
    settings: Distillation,
) -> tuple[LinearAttention, ...]:
    """The layers of the students, P solved for on fresh sequences."""
    for student in students:
        student.forget(0.0)
    for _ in range(settings.final_batches):
        batch = task.sample(settings.batch_size, generator, dtype=next(model.parameters()).dtype)
        for student, example in zip(students, _examples(model, batch), strict=True):
            student.loss(*example)
    return tuple(student.layer.requires_grad_(False) for student in students)


def _initial_layer(model: Transformer, index: int, generator: torch.Generator) -> LinearAttention:
    """Random weights with which queries, keys and values have the scale of the activations."""
    original, config = attention_layers(model)[index], model.config
    layer = LinearAttention(
        config.width,
        original.num_heads,
        original.key_dim,
        position_dim=original.position_dim,
        qk_norm=config.qk_norm,
        generator=generator,
    )
    with torch.no_grad():
        for weight in (layer.W_Q, layer.W_K, layer.W_V):
            weight.copy_(torch.randn(weight.shape, generator=generator) / config.width**0.5)
    return layer
