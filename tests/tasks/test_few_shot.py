"""Few-shot layouts: which token lies where, what is scored, what is refused."""

import math

import pytest
import torch

from mesascope.errors import InputError
from mesascope.tasks import EOSLayout, FewShotRegression, PairLayout, PrefixLayout, Sequences

N = 3
EOS = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
PREFIX = torch.arange(6, dtype=torch.float64).reshape(2, N) + 10


def draw(task: FewShotRegression, batch_size: int = 4, **learned: torch.Tensor) -> Sequences:
    return task.sample(batch_size, torch.Generator().manual_seed(0), dtype=torch.float64, **learned)


def test_pair_layout() -> None:
    task = FewShotRegression(n=N, pairs=(4,))
    sequences = draw(task)
    assert (task.length, task.token_dim) == (8, N)
    assert sequences.tokens.shape == (4, 8, N)
    assert sequences.scored is not None
    assert sequences.scored.tolist() == [0, 2, 4, 6]
    check_pairs(sequences, [sequences.scored])
    assert torch.equal(sequences.observations, sequences.tokens)


def test_eos_layout() -> None:
    task = FewShotRegression(n=N, pairs=(3,), layout=EOSLayout())
    sequences = draw(task, eos=EOS)
    assert task.length == 9
    assert sequences.scored is not None
    assert sequences.scored.tolist() == [0, 3, 6]
    assert torch.equal(sequences.tokens[:, 2::3], EOS.expand(4, 3, N))
    check_pairs(sequences, [sequences.scored])


def test_prefix_layout() -> None:
    task = FewShotRegression(n=N, pairs=(3,), layout=PrefixLayout(prefix=2))
    sequences = draw(task, eos=EOS, prefix=PREFIX)
    assert task.length == 11
    assert sequences.scored is not None
    assert sequences.scored.tolist() == [2, 5, 8]
    assert torch.equal(sequences.tokens[:, :2], PREFIX.expand(4, 2, N))
    assert torch.equal(sequences.tokens[:, 4::3], EOS.expand(4, 3, N))
    check_pairs(sequences, [sequences.scored])


def test_two_tasks_are_two_blocks_each_with_its_own_prefix() -> None:
    task = FewShotRegression(n=N, pairs=(2, 3), layout=PrefixLayout(prefix=2))
    sequences = draw(task, eos=EOS, prefix=PREFIX)
    assert task.length == 8 + 11
    assert sequences.scored is not None
    assert sequences.scored.tolist() == [2, 5, 10, 13, 16]
    assert torch.equal(sequences.tokens[:, 8:10], PREFIX.expand(4, 2, N))
    check_pairs(sequences, [sequences.scored[:2], sequences.scored[2:]])
    transition = sequences.latents.transition
    assert transition.shape == (4, 2, N, N)
    assert not torch.allclose(transition[:, 0], transition[:, 1])


def check_pairs(sequences: Sequences, positions: list[torch.Tensor]) -> None:
    """At every x_i the next token and the target are y_i = W* x_i of its task; W* is orthogonal."""
    identity = torch.eye(N, dtype=torch.float64)
    for index, where in enumerate(positions):
        w = sequences.latents.transition[:, index]
        torch.testing.assert_close(w @ w.mT, identity.expand_as(w))
        x, y = sequences.tokens[:, where], sequences.tokens[:, where + 1]
        torch.testing.assert_close(y, torch.einsum("bij,btj->bti", w, x))
        assert torch.equal(sequences.targets[:, where], y)
    assert torch.equal(sequences.targets[:, :-1], sequences.tokens[:, 1:])
    assert torch.equal(sequences.targets[:, -1], torch.zeros_like(sequences.targets[:, -1]))


@pytest.mark.parametrize(("inputs", "variance"), [("uniform", 1 / 3), ("normal", 1.0)])
def test_law_of_the_inputs(inputs: str, variance: float) -> None:
    sequences = draw(FewShotRegression(n=N, pairs=(50,), inputs=inputs), 100)  # type: ignore[arg-type]
    x = sequences.tokens[:, ::2]
    assert abs(float(x.mean())) < 5 * math.sqrt(variance / x.numel())
    assert float(x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / x.numel()))
    assert (float(x.abs().max()) <= 1) == (inputs == "uniform")


def test_label_noise() -> None:
    sequences = draw(FewShotRegression(n=N, pairs=(50,), noise_std=0.1), 50)
    x, y = sequences.tokens[:, ::2], sequences.tokens[:, 1::2]
    noise = y - torch.einsum("bij,btj->bti", sequences.latents.transition[:, 0], x)
    assert float(noise.std()) == pytest.approx(0.1, rel=5 / math.sqrt(2 * noise.numel()))


def test_defaults_are_those_of_the_paper() -> None:
    task = FewShotRegression()
    assert (task.n, task.pairs, task.length, task.inputs) == (10, (60,), 120, "uniform")
    assert FewShotRegression(layout=EOSLayout()).length == 180
    assert FewShotRegression(layout=PrefixLayout()).length == 200


def test_same_seed_same_bits() -> None:
    task = FewShotRegression(n=N, pairs=(5, 5), noise_std=0.1)
    assert torch.equal(draw(task).tokens, draw(task).tokens)
    assert draw(task).to(torch.float32).tokens.dtype == torch.float32


@pytest.mark.parametrize(
    ("layout", "longest"),
    [(PairLayout(), 112), (EOSLayout(), 74), (PrefixLayout(20), 68)],
    ids=["pair", "eos", "prefix"],
)
def test_the_trained_context_is_a_limit(layout: PairLayout | EOSLayout | PrefixLayout, longest: int) -> None:
    assert FewShotRegression(pairs=(longest,), layout=layout, max_length=224).length <= 224
    with pytest.raises(InputError, match=rf"pairs: got \({longest + 1},\), which makes 22\d tokens, .* is 224"):
        FewShotRegression(pairs=(longest + 1,), layout=layout, max_length=224)


def test_learned_tokens_are_asked_for_and_refused() -> None:
    pair, with_eos = FewShotRegression(n=N), FewShotRegression(n=N, layout=EOSLayout())
    with_prefix = FewShotRegression(n=N, layout=PrefixLayout(2))
    with pytest.raises(InputError, match=r"eos: got None, but EOSLayout needs a tensor of shape \(3,\)"):
        draw(with_eos)
    with pytest.raises(InputError, match=r"prefix: got None, but PrefixLayout needs a tensor of shape \(2, 3\)"):
        draw(with_prefix, eos=EOS)
    with pytest.raises(InputError, match=r"eos: got a tensor of shape \(3,\), but PairLayout has no eos"):
        draw(pair, eos=EOS)
    with pytest.raises(InputError, match=r"prefix: got a tensor of shape \(2, 3\), but EOSLayout has no prefix"):
        draw(with_eos, eos=EOS, prefix=PREFIX)


@pytest.mark.usefixtures("unchecked_shapes")
def test_learned_tokens_of_a_wrong_size() -> None:
    with_prefix = FewShotRegression(n=N, layout=PrefixLayout(2))
    with pytest.raises(InputError, match=r"eos: got \(2,\), but PrefixLayout needs a tensor of shape \(3,\)"):
        draw(with_prefix, eos=EOS[:2], prefix=PREFIX)
    with pytest.raises(InputError, match=r"prefix: got \(1, 3\), but PrefixLayout needs a tensor of shape \(2, 3\)"):
        draw(with_prefix, eos=EOS, prefix=PREFIX[:1])


def test_settings_that_are_not_allowed() -> None:
    for arguments, message in (
        ({"n": 0}, "n: got 0, but it must be at least 1"),
        ({"pairs": ()}, "pairs: got (), but it must be at least one task"),
        ({"pairs": (3, 0)}, "pairs: got (3, 0), but it must be at least 1 in every task"),
        ({"noise_std": -0.1}, "noise_std: got -0.1, but it must be at least 0"),
    ):
        with pytest.raises(InputError) as error:
            FewShotRegression(**arguments)  # type: ignore[arg-type]
        assert str(error.value) == message
    with pytest.raises(InputError, match="prefix: got 0, but it must be at least 1"):
        PrefixLayout(0)
    with pytest.raises(InputError, match="batch_size: got 0, but it must be at least 1"):
        draw(FewShotRegression(n=N), 0)
