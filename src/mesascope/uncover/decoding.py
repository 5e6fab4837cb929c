"""What a model has written into its residual stream: tokens, hidden features and the target, read off by probes.

Source: arXiv 2309.05858, Figs. 2A, 17 and 21 (tokens), 2B (features of the dynamics), 4E, 6A, 24A and 25A (targets).
Differences from the paper: those of `mesascope.uncover.probes`; (1) cleaning of targets is by their absolute value.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.tasks.sequences import Sequences
from mesascope.uncover.capture import ResidualStream
from mesascope.uncover.probe_results import ControlledProbe
from mesascope.uncover.probes import ProbeFit, probe_with_controls


def token_probes(
    stream: ResidualStream,
    untrained: ResidualStream,
    sequences: Sequences,
    *,
    generator: torch.Generator,
    layer: int = 1,
    at: int | None = None,
    reach: int = 7,
    fit: ProbeFit = ProbeFit(),
) -> ControlledProbe:
    """Which of the observations s_{t-reach} .. s_t can be read off a layer at time t: what the layer has bound.

    Args:
        stream, untrained: of the model and of one of its shape that was never trained, on `sequences`.
        sequences: what they read.
        generator, fit: as for `probe_with_controls`.
        layer: depth that is probed; 0 is the embedded input.
        at: t, counted from 1; None: the last time step.
        reach: how far back to probe.

    Returns:
        Probes whose time steps are the t' of what is read, `[1, reach + 1]`.

    Raises:
        InputError: as for `probe_with_controls`, or `layer`, `at` or `reach` lie outside of the stream.
    """
    read, blank = (_at(one.layer(layer), sequences.length if at is None else at, reach) for one in (stream, untrained))
    return _read_back(read, blank, sequences.observations, generator, fit)


def hidden_state_probes(
    stream: ResidualStream,
    untrained: ResidualStream,
    sequences: Sequences,
    features: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    at: int | None = None,
    reach: int = 7,
    fit: ProbeFit = ProbeFit(),
) -> ControlledProbe:
    """At which depth features of the last observations, such as MLP*(s_{t'}), can be read off at time t.

    Args:
        stream, untrained, sequences, generator, at, reach, fit: as for `token_probes`.
        features: maps observations `[B, T, n_s]` to what is probed for. MLP* itself, which the paper probes for, is
            `replace(task.features, normalise=False)`.

    Returns:
        Probes from every depth; time steps are those of what is read, `[depths, reach + 1]`.

    Raises:
        InputError: as for `token_probes`.
    """
    read, blank = (_at(one, sequences.length if at is None else at, reach) for one in (stream, untrained))
    return _read_back(read, blank, features(sequences.observations), generator, fit)


def target_probes(
    stream: ResidualStream,
    untrained: ResidualStream,
    sequences: Sequences,
    *,
    generator: torch.Generator,
    largest: float | None = None,
    fit: ProbeFit = ProbeFit(),
) -> ControlledProbe:
    """How well the target s_{t+1} can be read off every depth at every time step: the depth's guess so far.

    Args:
        stream, untrained, sequences, generator, fit: as for `token_probes`.
        largest: at each time step, leave out sequences whose target has a coordinate above this in absolute value
            (2.0 in the authors' code); None: keep all.

    Raises:
        InputError: as for `probe_with_controls`, or `largest` is not positive.
    """
    require(largest is None or largest > 0, "largest", largest, "greater than 0, or None")
    kept = None if largest is None else sequences.targets.abs().amax(-1) <= largest
    return probe_with_controls(stream, untrained, sequences.targets, generator=generator, kept=kept, fit=fit)


def _at(stream: ResidualStream, at: int, reach: int) -> ResidualStream:
    """The stream at one time step, once for every t' that is read off it."""
    length = len(stream.time_steps)
    require(1 <= at <= length, "at", at, f"between 1 and {length}")
    require(0 <= reach < at, "reach", reach, f"at least 0 and less than the time step {at}")
    values = stream.values[:, :, at - 1 : at].expand(-1, -1, reach + 1, -1)
    return ResidualStream(stream.labels, values, tuple(range(at - reach, at + 1)))


def _read_back(
    stream: ResidualStream,
    untrained: ResidualStream,
    values: Float[Tensor, "batch time m"],
    generator: torch.Generator,
    fit: ProbeFit,
) -> ControlledProbe:
    first, last = stream.time_steps[0], stream.time_steps[-1]
    read = values[:, first - 1 : last]
    return probe_with_controls(
        stream, untrained, read, generator=generator, fit=fit, axis=f"time step t' of what is read at t = {last}"
    )
