"""The containers: conversion, sub-batches and the predictor protocol."""

import torch

from mesascope.predictor import Predictor, TokenPredictor, loss_per_time_step
from mesascope.tasks import FewShotRegression, fully_observed_linear, partially_observed_linear


def test_to_converts_every_tensor(generator: torch.Generator) -> None:
    sequences = partially_observed_linear(2, 4, 6).sample(3, generator)
    double = sequences.to(torch.float64)
    latents = (double.latents.transition, double.latents.states, double.latents.emission)
    for tensor in (double.tokens, double.targets, double.observations, *latents):
        assert tensor is not None
        assert tensor.dtype == torch.float64
    assert torch.equal(double.tokens.float(), sequences.tokens)
    assert double.latents.features is None


def test_positions_stay_integers(generator: torch.Generator) -> None:
    sequences = FewShotRegression(n=2, pairs=(3,)).sample(4, generator)
    for changed in (sequences.to(torch.float64), sequences.select(slice(1, 3))):
        assert changed.scored is not None
        assert changed.scored.tolist() == [0, 2, 4]


def test_select_takes_rows_of_everything(generator: torch.Generator) -> None:
    sequences = partially_observed_linear(2, 4, 6).sample(5, generator)
    part = sequences.select(slice(1, 3))
    assert part.batch_size == 2
    assert torch.equal(part.tokens, sequences.tokens[1:3])
    assert torch.equal(part.latents.transition, sequences.latents.transition[1:3])
    assert part.latents.states is not None
    assert sequences.latents.states is not None
    assert torch.equal(part.latents.states, sequences.latents.states[1:3])


def test_token_predictor(generator: torch.Generator) -> None:
    sequences = fully_observed_linear(3, 5).sample(2, generator)
    scale = torch.ones((), requires_grad=True)
    predictor = TokenPredictor("twice", lambda tokens: 2 * scale * tokens)
    assert isinstance(predictor, Predictor)
    predictions = predictor.predict(sequences)
    assert torch.equal(predictions, 2 * sequences.tokens)
    assert not predictions.requires_grad


def test_loss_per_time_step() -> None:
    """Half the sum over dimensions, mean over the batch, in float64; not divided by n_s."""
    predictions = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]])
    targets = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]]])
    loss = loss_per_time_step(predictions, targets)
    assert loss.dtype == torch.float64
    assert loss.tolist() == [0.5 * (5 + 9) / 2, 0.5 * 9 / 2]
