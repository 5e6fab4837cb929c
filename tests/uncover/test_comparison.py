from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.figures import LinePanel
from mesascope.predictor import TokenPredictor, loss_per_time_step
from mesascope.tasks import fully_observed_linear
from mesascope.uncover import loss_curves, prediction_difference

ZERO = TokenPredictor("zero", torch.zeros_like)
LAST = TokenPredictor("last observation", lambda tokens: tokens)


@pytest.fixture
def batches(generator):
    task = fully_observed_linear(n_s=3, length=6)
    return [task.sample(size, generator) for size in (5, 1, 7)]


def test_losses_agree_with_all_sequences_at_once(batches):
    curves = loss_curves([ZERO, LAST], batches)
    observations = torch.cat([batch.observations for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    for label, predictions in (("zero", torch.zeros_like(targets)), ("last observation", observations)):
        expected = loss_per_time_step(predictions, targets).numpy()
        np.testing.assert_allclose(curves.curve(label), expected, rtol=1e-12)
    assert curves.labels == ("zero", "last observation")
    assert curves.num_sequences == 13
    np.testing.assert_array_equal(curves.time_steps, [1, 2, 3, 4, 5, 6])


def test_standard_errors_agree_with_numpy(batches):
    curves = loss_curves([ZERO], batches)
    losses = np.concatenate([0.5 * (batch.targets.double().numpy() ** 2).sum(-1) for batch in batches])
    expected = losses.std(0, ddof=1) / np.sqrt(13)
    np.testing.assert_allclose(curves.standard_error[0], expected, rtol=1e-12)
    overall = losses.mean(1)
    np.testing.assert_allclose(curves.overall, [overall.mean()], rtol=1e-12)
    np.testing.assert_allclose(curves.overall_standard_error, [overall.std(ddof=1) / np.sqrt(13)], rtol=1e-12)


def test_difference_of_two_predictors(batches):
    curves = prediction_difference(LAST, ZERO, batches)
    squares = np.concatenate([0.5 * (batch.observations.double().numpy() ** 2).sum(-1) for batch in batches])
    np.testing.assert_allclose(curves.mean, squares.mean(0)[None], rtol=1e-12)
    assert curves.labels == ("last observation - zero",)


def test_difference_of_a_predictor_and_itself_is_zero(batches):
    assert not prediction_difference(LAST, LAST, batches).mean.any()


def test_only_scored_time_steps_count(batches):
    scored = [replace(batch, scored=torch.tensor([0, 2, 5])) for batch in batches]
    curves, everything = loss_curves([ZERO], scored), loss_curves([ZERO], batches)
    np.testing.assert_array_equal(curves.time_steps, [1, 3, 6])
    np.testing.assert_allclose(curves.mean[0], everything.mean[0, [0, 2, 5]], rtol=1e-14)
    np.testing.assert_allclose(curves.overall, curves.mean.mean(1), rtol=1e-12)


def test_single_sequence_has_no_error_and_no_band(batches):
    curves = loss_curves([ZERO], [batches[1]])
    assert np.isnan(curves.standard_error).all()
    (panel,) = curves.figure("f", "Losses", "").panels
    assert isinstance(panel, LinePanel)
    assert panel.lines[0].low is None


def test_table_has_a_row_per_time_step(batches):
    curves = loss_curves([ZERO, LAST], batches)
    table = curves.table("losses", "Losses")
    assert table.columns == (
        "time step",
        "zero: next-token prediction loss",
        "zero: standard error",
        "last observation: next-token prediction loss",
        "last observation: standard error",
    )
    assert len(table.rows) == 6
    last_row = [6, curves.mean[0, 5], curves.standard_error[0, 5], curves.mean[1, 5], curves.standard_error[1, 5]]
    assert list(table.rows[-1]) == last_row


def test_figure_draws_models_solid_and_hypotheses_dashed(batches):
    curves = loss_curves([ZERO, LAST], batches)
    figure = curves.figure("f", "Losses", "caption", roles={"zero": "hypothesis"}, log_y=True)
    (panel,) = figure.panels
    assert isinstance(panel, LinePanel)
    assert [(line.label, line.role, line.colour) for line in panel.lines] == [
        ("zero", "hypothesis", 0),
        ("last observation", "model", 1),
    ]
    np.testing.assert_array_equal(panel.lines[0].high, curves.mean[0] + curves.standard_error[0])
    assert panel.log_y


def test_errors_name_the_argument(batches):
    with pytest.raises(InputError, match=r"predictors: got .*, but it must be at least one predictor"):
        loss_curves([], batches)
    with pytest.raises(InputError, match=r"predictors: got .* with distinct names"):
        loss_curves([ZERO, ZERO], batches)
    with pytest.raises(InputError, match="batches: got none"):
        loss_curves([ZERO], [])
    with pytest.raises(InputError, match="batches: got batches that score different time steps"):
        loss_curves([ZERO], [batches[0], replace(batches[1], scored=torch.tensor([0]))])
    curves = loss_curves([ZERO], batches)
    with pytest.raises(InputError, match="label: got 'one', but it must be one of 'zero'"):
        curves.curve("one")
    with pytest.raises(InputError, match="roles: got 'one', but it must be one of 'zero'"):
        curves.figure("f", "", "", roles={"one": "model"})
