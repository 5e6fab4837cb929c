"""Tokens fine-tuned for a frozen model: an end-of-pair token, then a prefix before the first pair.

A model that was trained on sequences takes what follows y_i for its answer, too. A token between the pairs, learned
with the weights frozen, removes these spurious pairs; a learned prefix tells the model what is coming.

Source: arXiv 2309.05858, section on in-context learning and table of fine-tuned tokens: both drawn from N(0, I), Adam,
5,000 steps of 256 sequences, loss at the positions of the labels only; EOS is frozen while the prefix is tuned.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mesascope.errors import DivergenceError, require
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.predictor import half_squared_error
from mesascope.tasks import EOSLayout, FewShotRegression, PrefixLayout, Sequences
from mesascope.uncover.few_shot import Prompt

_PASS = 32
"""Sequences per forward and backward pass; the gradients of a step are summed. Small passes stay in the cache."""


@dataclass(frozen=True)
class PromptTuning:
    """How tokens are tuned.

    Attributes:
        steps: of Adam.
        batch_size: fresh sequences per step.
        learning_rate: of Adam.
    """

    steps: int = 5000
    batch_size: int = 256
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "greater than 0")


@dataclass(frozen=True)
class TunedPrompt:
    """Tuned tokens.

    Attributes:
        prompt: the tokens, to evaluate with.
        losses: mean loss on y_i before each step, on that step's sequences.
    """

    prompt: Prompt
    losses: tuple[float, ...]

    def table(self, id: str, title: str) -> Table:
        """One row per step."""
        return Table(id, title, ("step", "loss on y_i"), tuple(enumerate(self.losses)))

    def figure(self, id: str, title: str, caption: str) -> Figure:
        """Loss over steps."""
        steps = np.arange(len(self.losses), dtype=np.float64)
        line = Line("loss on the sequences of the step", steps, np.array(self.losses))
        return Figure(id, title, caption, (LinePanel(title, "step", "loss on y_i", (line,)),), 1)


def tune_eos(
    model: nn.Module, task: FewShotRegression, generator: torch.Generator, settings: PromptTuning = PromptTuning()
) -> TunedPrompt:
    """Tune the token that ends every pair.

    Args:
        model: maps tokens to predictions; a copy of it is used, so its weights stay as they are.
        task: with an `EOSLayout`.
        generator: draws the start and the sequences.
        settings: steps, batch and learning rate.

    Raises:
        InputError: `task` has another layout.
        DivergenceError: the loss is not finite.
    """
    require(isinstance(task.layout, EOSLayout), "task.layout", task.layout, "EOSLayout()")

    def sample(size: int, eos: Tensor) -> Sequences:
        return task.sample(size, generator, eos=eos)

    eos, losses = _tune(model, torch.randn(task.n, generator=generator), sample, settings)
    return TunedPrompt(Prompt(eos), losses)


def tune_prefix(
    model: nn.Module,
    task: FewShotRegression,
    eos: Tensor,
    generator: torch.Generator,
    settings: PromptTuning = PromptTuning(),
) -> TunedPrompt:
    """Tune the tokens before the first pair, with the token that ends pairs fixed.

    Args:
        task: with a `PrefixLayout`.
        eos: from `tune_eos`, `[n]`.
        model, generator, settings: as in `tune_eos`.

    Returns:
        A prompt of both.

    Raises:
        InputError: `task` has another layout, or `eos` does not fit it.
        DivergenceError: the loss is not finite.
    """
    require(isinstance(task.layout, PrefixLayout), "task.layout", task.layout, "a PrefixLayout")

    def sample(size: int, prefix: Tensor) -> Sequences:
        return task.sample(size, generator, eos=eos, prefix=prefix)

    start = torch.randn(task.layout.prefix, task.n, generator=generator)
    prefix, losses = _tune(model, start, sample, settings)
    return TunedPrompt(Prompt(eos, prefix), losses)


def _tune(
    model: nn.Module, start: Tensor, sample: Callable[[int, Tensor], Sequences], settings: PromptTuning
) -> tuple[Tensor, tuple[float, ...]]:
    frozen = copy.deepcopy(model).requires_grad_(False)
    tokens = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([tokens], lr=settings.learning_rate)
    losses = []
    for step in range(settings.steps):
        optimiser.zero_grad()
        losses.append(0.0)
        for first in range(0, settings.batch_size, _PASS):
            size = min(_PASS, settings.batch_size - first)
            sequences = sample(size, tokens)
            error = half_squared_error(frozen(sequences.tokens), sequences.targets.detach())
            loss = error[:, sequences.scored_indices].mean() * (size / settings.batch_size)
            loss.backward()
            losses[-1] += float(loss.detach())
        if not losses[-1] < float("inf"):
            rate = settings.learning_rate
            raise DivergenceError(f"the loss is {losses[-1]} at step {step}; use a learning_rate below {rate}")
        optimiser.step()
    return tokens.detach(), tuple(losses)
