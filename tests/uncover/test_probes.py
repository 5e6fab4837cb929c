"""Probes against an ordinary least-squares solve per depth and time step, their scores, intervals and controls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mesascope.errors import InputError
from mesascope.figures import LinePanel
from mesascope.uncover import ProbeFit, ProbeResult, ResidualStream, probe, probe_with_controls

DEPTHS, BATCH, TIME, WIDTH, SIZE = 3, 61, 4, 5, 2


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream_of(values: Tensor) -> ResidualStream:
    labels = ("Inp.", *(str(layer) for layer in range(1, len(values))))
    return ResidualStream(labels, values, tuple(range(1, values.shape[2] + 1)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def stream() -> ResidualStream:
    scales = torch.tensor([1.0, 0.1, 3.0], dtype=torch.float64)[:, None, None, None]
    return stream_of(scales * draw(DEPTHS, BATCH, TIME, WIDTH, seed=1) + 0.3)


@pytest.fixture
def targets(stream: ResidualStream) -> Tensor:
    """Depth 2 knows them up to noise, and only at the time step itself."""
    maps = draw(TIME, SIZE, WIDTH, seed=2)
    return torch.einsum("tmd,btd->btm", maps, stream.values[2]) + 0.5 * draw(BATCH, TIME, SIZE, seed=3) + 1.0


@pytest.fixture
def kept() -> Tensor:
    return draw(BATCH, TIME, seed=4) > -1.0


def split() -> tuple[np.ndarray, np.ndarray]:
    """The first draw of the generator orders the sequences; probes are fitted on the first half."""
    order = torch.randperm(BATCH, generator=generator()).numpy()
    return order[: round(BATCH / 2)], order[round(BATCH / 2) :]


def scores(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    errors = (y - x @ weights) ** 2
    r2 = np.mean(1 - errors.sum(0) / ((y - y.mean(0)) ** 2).sum(0))
    return float(r2), float(errors.mean()), float(errors.sum(1).mean() / 2)


@pytest.mark.parametrize("cleaned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_least_squares_per_depth_and_time_step(
    stream: ResidualStream, targets: Tensor, kept: Tensor, cleaned: bool, dtype: torch.dtype
) -> None:
    mask = kept if cleaned else None
    result = probe(stream_of(stream.values.to(dtype)), targets.to(dtype), generator=generator(), kept=mask)
    x, y = stream.values.to(dtype).double().numpy(), targets.to(dtype).double().numpy()
    for depth in range(DEPTHS):
        for t in range(TIME):
            fitted, held_out = (rows[kept.numpy()[rows, t]] if cleaned else rows for rows in split())
            weights = np.linalg.lstsq(x[depth, fitted, t], y[fitted, t], rcond=None)[0]
            np.testing.assert_allclose(result.weights[depth, t].numpy(), weights.T, rtol=1e-7, atol=1e-8)
            held_out_scores = scores(x[depth, held_out, t], y[held_out, t], weights)
            in_sample = scores(x[depth, fitted, t], y[fitted, t], weights)
            for name, expected, published in zip(("r2", "mse", "loss"), held_out_scores, in_sample, strict=True):
                assert result.score(name).value[depth, t] == pytest.approx(expected, rel=1e-7, abs=1e-9)
                assert result.score(name).in_sample[depth, t] == pytest.approx(published, rel=1e-7, abs=1e-9)
            assert result.variance[t] == pytest.approx(y[held_out, t].var(0).mean(), rel=1e-9)
            assert (result.num_fitted[t], result.num_held_out[t]) == (len(fitted), len(held_out))
    assert result.labels == ("Inp.", "1", "2")
    np.testing.assert_array_equal(result.time_steps, [1, 2, 3, 4])


def test_finds_where_the_targets_are(stream: ResidualStream, targets: Tensor) -> None:
    result = probe(stream, targets, generator=generator())
    assert (result.r2.value[2] > 0.85).all()
    assert (result.r2.value[:2] < 0.1).all()
    late = probe(stream, targets.roll(1, dims=1), generator=generator())
    assert (late.r2.value < 0.1).all()


def test_an_exact_relation_is_found_exactly(stream: ResidualStream) -> None:
    exact = torch.einsum("md,btd->btm", draw(SIZE, WIDTH, seed=5), stream.values[1])
    result = probe(stream, exact, generator=generator())
    assert (1 - result.r2.value[1] < 1e-15).all()
    assert (result.mse.value[1] < 1e-18).all()


def test_noise_is_explained_in_sample_only() -> None:
    """In sample, noise seems to explain d / n of the mean square; held out, it costs d / (n - d - 1)."""
    batch, time, width, fitted = 400, 100, 20, 200
    noise, stream = draw(batch, time, 3, seed=6), stream_of(draw(1, batch, time, width, seed=7))
    result = probe(stream, noise, generator=generator())
    assert result.r2.in_sample.mean() == pytest.approx((width - 1) / (fitted - 1), rel=0.05)
    assert result.r2.value.mean() == pytest.approx(-width / (fitted - width - 1), rel=0.1)


def test_intervals_cover_the_true_error() -> None:
    """2,000 probes of the same kind: intervals at 80 % cover the error expected of each probe in about 80 % of them."""
    batch, time, width, noise = 120, 2_000, 2, 0.5
    values, truth = draw(1, batch, time, width, seed=8), draw(1, width, seed=9)
    targets = values[0] @ truth.T + noise * draw(batch, time, 1, seed=10)
    result = probe(stream_of(values), targets, generator=generator(), fit=ProbeFit(confidence=0.8, resamples=300))
    wrong = (result.weights[0] - truth).square().sum((-1, -2)).numpy()
    expected = {"mse": noise**2 + wrong, "loss": (noise**2 + wrong) / 2}
    expected["r2"] = 1 - expected["mse"] / float(truth.square().sum() + noise**2)
    for name, value in expected.items():
        score = result.score(name)
        assert np.mean((score.low[0] <= value) & (value <= score.high[0])) == pytest.approx(0.78, abs=0.04)
        below, above = np.mean(value < score.low[0]), np.mean(value > score.high[0])
        assert 0.04 < below < 0.16
        assert 0.04 < above < 0.2


def test_intervals_of_means_agree_with_standard_errors(stream: ResidualStream, targets: Tensor) -> None:
    result = probe(stream, targets, generator=generator(), fit=ProbeFit(resamples=4_000))
    x, y, (_, held_out) = stream.values.numpy(), targets.numpy(), split()
    errors = ((x[2, held_out, 1] @ result.weights[2, 1].numpy().T - y[held_out, 1]) ** 2).mean(1)
    half_width = 1.96 * errors.std() / np.sqrt(len(held_out))
    assert result.mse.high[2, 1] - result.mse.low[2, 1] == pytest.approx(2 * half_width, rel=0.08)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_what_is_left_out_does_not_matter(stream: ResidualStream, targets: Tensor, kept: Tensor, junk: float) -> None:
    clean = probe(stream, targets, generator=generator(), kept=kept)
    spoilt = probe(stream, targets.masked_fill(~kept[:, :, None], junk), generator=generator(), kept=kept)
    assert_equal(clean, spoilt)


def assert_equal(first: ProbeResult, second: ProbeResult) -> None:
    for name in ("r2", "mse", "loss"):
        for part in ("value", "low", "high", "in_sample"):
            np.testing.assert_array_equal(getattr(first.score(name), part), getattr(second.score(name), part))
    assert torch.equal(first.weights, second.weights)


def test_the_generator_decides(stream: ResidualStream, targets: Tensor) -> None:
    assert_equal(*(probe(stream, targets, generator=generator(3)) for _ in range(2)))
    other = probe(stream, targets, generator=generator(4))
    assert not np.array_equal(other.mse.value, probe(stream, targets, generator=generator(3)).mse.value)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0))
def test_scores_follow_a_change_of_coordinates(seed: int, scale: float) -> None:
    values, targets = draw(1, 40, 2, 3, seed=11), draw(40, 2, 2, seed=12)
    mixing = torch.linalg.qr(draw(3, 3, seed=seed))[0] * scale
    plain = probe(stream_of(values), targets, generator=generator())
    mixed = probe(stream_of(values @ mixing), targets * scale, generator=generator())
    np.testing.assert_allclose(mixed.r2.value, plain.r2.value, rtol=1e-6)
    np.testing.assert_allclose(mixed.mse.value, plain.mse.value * scale**2, rtol=1e-6)
    np.testing.assert_allclose(mixed.loss.value, plain.loss.value * scale**2, rtol=1e-6)


def test_empty_and_repeated_directions_do_no_harm(stream: ResidualStream, targets: Tensor) -> None:
    values = stream.values[2:]
    wide = torch.cat([values, values[..., :2], torch.zeros_like(values)], dim=-1)
    narrow, result = (probe(stream_of(part), targets, generator=generator()) for part in (values, wide))
    np.testing.assert_allclose(result.r2.value, narrow.r2.value, rtol=1e-6)
    empty = probe(stream_of(torch.zeros_like(values)), targets, generator=generator())
    assert not empty.weights.any()
    np.testing.assert_allclose(empty.mse.in_sample[0], targets[split()[0]].square().mean((0, 2)).numpy())


def test_controls_share_the_split_and_know_nothing(stream: ResidualStream, targets: Tensor, kept: Tensor) -> None:
    untrained = stream_of(draw(DEPTHS, BATCH, TIME, WIDTH, seed=13))
    found = probe_with_controls(stream, untrained, targets, generator=generator(), kept=kept)
    assert_equal(found.model, probe(stream, targets, generator=generator(), kept=kept))
    assert_equal(found.untrained, probe(untrained, targets, generator=generator(), kept=kept))
    assert (found.model.r2.value[2] > 0.8).all()
    for control in (found.untrained, found.shuffled):
        assert (control.r2.value < 0.2).all()
    assert found.shuffled.num_fitted.sum() + found.shuffled.num_held_out.sum() == int(kept.sum())
    assert found.axis == "time step t"


def test_table_holds_every_probe(stream: ResidualStream, targets: Tensor) -> None:
    found = probe_with_controls(stream, stream, targets, generator=generator(), axis="time step t'")
    table = found.table("probes", "Probes")
    assert (table.id, table.title, table.columns[:3]) == ("probes", "Probes", ("layer", "time step t'", "R²"))
    assert [row[:2] for row in table.rows] == [(label, t) for label in ("Inp.", "1", "2") for t in (1, 2, 3, 4)]
    row = dict(zip(table.columns, table.rows[2 * TIME + 1], strict=True))
    model = found.model
    for column, value in (
        ("R²", model.r2.value),
        ("R² low", model.r2.low),
        ("R² high", model.r2.high),
        ("R² in sample", model.r2.in_sample),
        ("squared error", model.mse.value),
        ("low", model.mse.low),
        ("high", model.mse.high),
        ("squared error in sample", model.mse.in_sample),
        ("loss", model.loss.value),
        ("loss in sample", model.loss.in_sample),
        ("R² untrained", found.untrained.r2.value),
        ("R² shuffled", found.shuffled.r2.value),
        ("squared error untrained", found.untrained.mse.value),
        ("squared error shuffled", found.shuffled.mse.value),
    ):
        assert row[column] == value[2, 1], column
    assert row["variance of the target"] == model.variance[1]


def test_figure_shows_every_depth_and_the_best_of_each_control(stream: ResidualStream, targets: Tensor) -> None:
    untrained = stream_of(draw(DEPTHS, BATCH, TIME, WIDTH, seed=13))
    found = probe_with_controls(stream, untrained, targets, generator=generator())
    figure = found.figure("id", "Title", "Caption.", "loss", log_y=True)
    (panel,) = figure.panels
    assert isinstance(panel, LinePanel)
    assert (panel.x_label, panel.y_label, panel.log_y) == ("time step t", "loss of the probe, held out", True)
    assert [line.label for line in panel.lines] == [
        *("embedded input", "layer 1", "layer 2"),
        *("untrained model, best layer", "shuffled targets, best layer"),
    ]
    assert [line.role for line in panel.lines] == ["model"] * 3 + ["reference"] * 2
    np.testing.assert_array_equal(panel.lines[2].y, found.model.loss.value[2])
    np.testing.assert_array_equal(panel.lines[2].low, found.model.loss.low[2])
    np.testing.assert_array_equal(panel.lines[3].y, found.untrained.loss.value.min(0))
    np.testing.assert_array_equal(found.lines("r2")[4].y, found.shuffled.r2.value.max(0))
    single = probe_with_controls(stream.layer(2), stream_of(untrained.values).layer(2), targets, generator=generator())
    assert [line.label for line in single.lines("mse")] == ["layer 2", "untrained model", "shuffled targets"]


@pytest.mark.usefixtures("unchecked_shapes")
def test_errors_name_what_is_wrong(stream: ResidualStream, targets: Tensor, kept: Tensor) -> None:
    with pytest.raises(InputError, match=r"targets: got \(60, 4, 2\), but it must be of shape \[61, 4, m\]"):
        probe(stream, targets[:-1], generator=generator())
    with pytest.raises(InputError, match=r"kept: got \(61, 3\), but it must be of shape \[61, 4\]"):
        probe(stream, targets, generator=generator(), kept=kept[:, :-1])
    with pytest.raises(InputError, match=r"targets: got .* but it must be finite where kept"):
        probe(stream, targets.index_fill(0, torch.tensor([5]), torch.nan), generator=generator())
    with pytest.raises(InputError, match=r"stream: got .* but it must be finite"):
        probe(stream_of(stream.values / 0), targets, generator=generator())
    with pytest.raises(InputError, match=r"untrained: got \(2, 61, 4, 5\), but it must be a stream of the"):
        probe_with_controls(stream, stream_of(stream.values[:2]), targets, generator=generator())
    with pytest.raises(InputError, match="sequences: got '5 to fit on at time step 1', but it must be at least 6"):
        probe(stream_of(stream.values[:, :10]), targets[:10], generator=generator())
    few = kept.clone()
    few[split()[1], 2] = False
    with pytest.raises(InputError, match="sequences: got '0 to score on at time step 3', but it must be at least 2"):
        probe(stream, targets, generator=generator(), kept=few)


def test_settings_and_names_are_checked(stream: ResidualStream, targets: Tensor) -> None:
    for field, value in (("fraction", 0.0), ("fraction", 1.0), ("ridge", 0.0), ("resamples", 0), ("confidence", 1.0)):
        with pytest.raises(InputError, match=f"{field}: got {value}"):
            replace(ProbeFit(), **{field: value})
    result = probe(stream, targets, generator=generator())
    assert result.at(3) == 2
    with pytest.raises(InputError, match=r"time_step: got 5, but it must be one of 1 \.\. 4"):
        result.at(5)
    assert probe(stream, targets, generator=generator(), fit=ProbeFit(fraction=0.75)).num_fitted[0] == 46


@pytest.mark.usefixtures("unchecked_shapes")
def test_quantities_have_names(stream: ResidualStream, targets: Tensor) -> None:
    with pytest.raises(InputError, match="quantity: got 'R2', but it must be one of 'r2', 'mse', 'loss'"):
        probe(stream, targets, generator=generator()).score("R2")
