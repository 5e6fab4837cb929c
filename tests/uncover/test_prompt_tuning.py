"""Tuned tokens: the gradient they follow, what stays frozen, and that they help."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mesascope.errors import DivergenceError, InputError
from mesascope.figures import LinePanel
from mesascope.nn import Linear, Transformer, TransformerConfig
from mesascope.tasks import EOSLayout, FewShotRegression, PairLayout, PrefixLayout
from mesascope.uncover import Prompt, PromptTuning, few_shot_curve, tune_eos, tune_prefix

N = 3
EOS_TASK, PREFIX_TASK = FewShotRegression(N, (6,), EOSLayout()), FewShotRegression(N, (6,), PrefixLayout(2))
SHORT = PromptTuning(steps=3, batch_size=5, learning_rate=0.05)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model() -> Transformer:
    config = TransformerConfig(N, N, (Linear(), Linear()), 2, 4, embed_dim=8, position_dim=4, init_std=0.4)
    return Transformer(config, seeded(1))


class PreviousToken(nn.Module):
    """Predicts the token before the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)


def adam_by_hand(start: np.ndarray, gradient, settings: PromptTuning) -> np.ndarray:
    value, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, settings.steps + 1):
        g = gradient(value)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        value = value - settings.learning_rate * (first / (1 - 0.9**step)) / (
            np.sqrt(second / (1 - 0.999**step)) + 1e-8
        )
    return value


def test_eos_follows_adam_on_the_loss_at_the_labels() -> None:
    """The model copies the previous token, so at x_i, i > 1, it predicts EOS: the gradient is known in closed form."""
    tuned = tune_eos(PreviousToken(), EOS_TASK, seeded(), SHORT)
    generator = seeded()
    start = torch.randn(N, generator=generator).numpy()
    losses = []

    def gradient(eos: np.ndarray) -> np.ndarray:
        y = EOS_TASK.sample(5, generator, eos=torch.zeros(N)).tokens.numpy()[:, 1::3]
        predicted = np.concatenate([np.zeros_like(y[:, :1]), np.broadcast_to(eos, y[:, 1:].shape)], axis=1)
        losses.append(0.5 * ((predicted - y) ** 2).sum(-1).mean())
        return (predicted - y)[:, 1:].sum((0, 1)) / (5 * 6)

    expected = adam_by_hand(start, gradient, SHORT)
    assert tuned.prompt.eos is not None
    np.testing.assert_allclose(tuned.prompt.eos, expected, rtol=1e-4)
    np.testing.assert_allclose(tuned.losses, losses, rtol=1e-5)
    assert tuned.prompt.prefix is None


def test_prefix_follows_adam_with_eos_fixed() -> None:
    """Before x_1 comes the last prefix token, and the first one is never the previous token of a scored one."""
    eos = torch.tensor([0.3, -0.2, 0.1])
    tuned = tune_prefix(PreviousToken(), PREFIX_TASK, eos, seeded(), SHORT)
    generator = seeded()
    start = torch.randn(2, N, generator=generator).numpy()

    def gradient(last: np.ndarray) -> np.ndarray:
        y = PREFIX_TASK.sample(5, generator, eos=eos, prefix=torch.zeros(2, N)).tokens.numpy()[:, 3]
        return (last - y).sum(0) / (5 * 6)

    assert tuned.prompt.prefix is not None
    np.testing.assert_allclose(tuned.prompt.prefix[0], start[0])
    np.testing.assert_allclose(tuned.prompt.prefix[1], adam_by_hand(start[1], gradient, SHORT), rtol=1e-4)
    assert tuned.prompt.eos is eos


def test_passes_add_up_to_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of several passes is Adam's on the mean over the batch, also where the last pass is smaller."""
    monkeypatch.setattr("mesascope.uncover.prompt_tuning._PASS", 2)
    generator, losses = seeded(), []
    eos = torch.randn(N, generator=generator).requires_grad_()
    for size in (2, 2, 1):
        sequences = EOS_TASK.sample(size, generator, eos=eos)
        error = (PreviousToken()(sequences.tokens) - sequences.targets.detach()).square().sum(-1)
        losses.append(0.5 * error[:, sequences.scored].mean() * size / 5)
    in_passes = tune_eos(PreviousToken(), EOS_TASK, seeded(), PromptTuning(1, 5, 0.05))
    loss = torch.stack(losses).sum()
    assert in_passes.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    moved = in_passes.prompt.eos - eos.detach()
    torch.testing.assert_close(moved, -0.05 * eos.grad.sign(), rtol=1e-3, atol=1e-6)


def test_tuning_helps_and_changes_no_weight() -> None:
    transformer = model()
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    settings = PromptTuning(steps=60, batch_size=32, learning_rate=0.05)
    eos = tune_eos(transformer, EOS_TASK, seeded(), settings)
    both = tune_prefix(transformer, PREFIX_TASK, eos.prompt.eos, seeded(1), settings)
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in transformer.parameters())
    assert not eos.prompt.eos.requires_grad
    for tuned, task, start in (
        (eos, EOS_TASK, Prompt(torch.randn(N, generator=seeded()))),
        (both, PREFIX_TASK, Prompt(eos.prompt.eos, torch.randn(2, N, generator=seeded(1)))),
    ):
        losses = [
            float(few_shot_curve(transformer, task, 400, seeded(9), prompt=prompt).mean.mean())
            for prompt in (start, tuned.prompt)
        ]
        assert losses[1] < 0.95 * losses[0]


def test_equal_generators_give_equal_tokens() -> None:
    first, second = (tune_eos(model(), EOS_TASK, seeded(3), SHORT) for _ in range(2))
    assert torch.equal(first.prompt.eos, second.prompt.eos)
    assert first.losses == second.losses
    assert not torch.equal(first.prompt.eos, tune_eos(model(), EOS_TASK, seeded(4), SHORT).prompt.eos)


def test_table_and_figure_show_every_step() -> None:
    tuned = tune_eos(model(), EOS_TASK, seeded(), SHORT)
    assert tuned.table("tuning", "Tuning").rows == tuple(enumerate(tuned.losses))
    (panel,) = tuned.figure("tuning", "Tuning", "caption").panels
    assert isinstance(panel, LinePanel)
    np.testing.assert_array_equal(panel.lines[0].y, tuned.losses)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named() -> None:
    for field in ("steps", "batch_size", "learning_rate"):
        with pytest.raises(InputError, match=f"{field}: got 0"):
            PromptTuning(**{field: 0})
    with pytest.raises(InputError, match=r"task\.layout: got PairLayout\(\), but it must be EOSLayout"):
        tune_eos(model(), FewShotRegression(N, (6,), PairLayout()), seeded(), SHORT)
    with pytest.raises(InputError, match=r"task\.layout: got EOSLayout\(\), but it must be a PrefixLayout"):
        tune_prefix(model(), EOS_TASK, torch.zeros(N), seeded(), SHORT)
    with pytest.raises(InputError, match=r"eos: got \(2,\), but PrefixLayout needs a tensor of shape \(3,\)"):
        tune_prefix(model(), PREFIX_TASK, torch.zeros(2), seeded(), SHORT)
    broken = PreviousToken()
    broken.scale.data.fill_(float("inf"))
    with pytest.raises(DivergenceError, match=r"the loss is (nan|inf) at step 0; use a learning_rate below 0\.05"):
        tune_eos(broken, EOS_TASK, seeded(), SHORT)
