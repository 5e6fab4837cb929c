"""The peer of the speed comparison does the same work, and the comparison yields numbers."""

import math

import pytest
import torch

from mesascope.benchmarks import train as bench
from mesascope.benchmarks.handwritten import HandwrittenModel, HandwrittenTraining
from mesascope.errors import InputError
from mesascope.nn import Softmax, Transformer, TransformerConfig
from mesascope.nn.transformer import sinusoidal_positions
from mesascope.training.loop import TrainingState, sequence_loss
from mesascope.training.presets import paper_trainings
from training.tiny import HYBRID, varied

REAL = paper_trainings()["softmax-7"]

_BLOCK_NAMES = {
    "attn.W_Q": "query.weight",
    "attn.W_K": "key.weight",
    "attn.W_V": "value.weight",
    "attn.P": "out.weight",
    "attn_norm.weight": "norm_1.weight",
    "attn_norm.bias": "norm_1.bias",
    "mlp_norm.weight": "norm_2.weight",
    "mlp_norm.bias": "norm_2.bias",
    "mlp.W_1": "up.weight",
    "mlp.W_2": "down.weight",
}


def handwritten_name(name: str) -> str:
    """What the hand-written model calls our parameter `name`."""
    if not name.startswith("blocks."):
        return f"{name}.weight"
    _, index, rest = name.split(".", 2)
    return f"blocks.{index}.{_BLOCK_NAMES[rest]}"


def pair(config: TransformerConfig, length: int, generator: torch.Generator) -> tuple[Transformer, HandwrittenModel]:
    """Our model and the hand-written one with the same random weights, in float64; the norms are random too."""
    ours, peer = Transformer(config, generator).double(), HandwrittenModel(config, length).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
    peer.load_state_dict({handwritten_name(name): value for name, value in ours.state_dict().items()}, strict=True)
    assert config.position_dim is not None
    peer.positions = sinusoidal_positions(length, config.position_dim)
    return ours, peer


def test_the_peer_computes_what_we_compute(generator: torch.Generator) -> None:
    ours, peer = pair(REAL.model, REAL.task.length, generator)
    sequences = REAL.task.sample(4, generator, dtype=torch.float64)
    found, theirs = ours(sequences.tokens), peer(sequences.tokens)
    assert float(theirs.detach().std()) > 0.1
    torch.testing.assert_close(found, theirs, rtol=1e-10, atol=1e-10)
    sequence_loss(found, sequences.targets).backward()
    sequence_loss(theirs, sequences.targets).backward()
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    assert len(gradients) == len(list(ours.parameters()))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[handwritten_name(name)], rtol=1e-9, atol=1e-10)


def test_the_peer_optimises_as_we_do() -> None:
    state, peer = TrainingState(REAL), HandwrittenTraining(REAL.model, REAL.task.length, 1e-3, REAL.weight_decay)
    (ours,), (theirs,) = state.optimiser.param_groups, peer.optimiser.param_groups
    assert type(state.optimiser) is type(peer.optimiser)
    for key in ("betas", "eps", "weight_decay", "fused", "amsgrad", "maximize", "foreach"):
        assert ours[key] == theirs[key], key
    sizes = [
        sum(parameter.numel() for parameter in group["params"])
        for group in (*state.optimiser.param_groups, *peer.optimiser.param_groups)
    ]
    assert sizes[0] == sizes[1]


def test_the_peer_learns(generator: torch.Generator) -> None:
    config = varied(HYBRID, model=_softmax_model())
    peer = HandwrittenTraining(config.model, config.task.length, 1e-2, 0.05)
    sequences = config.task.sample(32, generator)
    losses = [peer.update(sequences.tokens, sequences.targets) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def _softmax_model() -> TransformerConfig:
    return TransformerConfig(
        token_dim=3,
        prediction_dim=3,
        attention=(Softmax(), Softmax()),
        num_heads=2,
        key_dim=4,
        embed_dim=6,
        mlp_dim=8,
        layer_norm=True,
        position_dim=6,
    )


def test_claims_get_positive_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"softmax-7": varied(HYBRID, model=_softmax_model()), "hybrid-mesa": HYBRID}
    monkeypatch.setattr(bench, "paper_trainings", lambda: tiny)
    torch.set_num_threads(2)
    claims = bench.bench_training(rounds=1, threads=1)
    assert torch.get_num_threads() == 2
    assert [claim.claim for claim in claims] == [
        bench.STEP_RATIO,
        bench.NATIVE_STEP_RATIO,
        bench.DATA_SHARE,
        bench.HYBRID_STEP_RATIO,
    ]
    for claim in claims:
        assert math.isfinite(claim.measured)
        assert claim.measured > 0
        assert len(claim.values) == 2
        assert claim.measured == pytest.approx(claim.values[0] / claim.values[1])
        assert all(value > 0 for value in claim.values)
    step, native, share, _ = claims
    assert (step.measured, step.values) == (native.measured, native.values)
    assert share.measured < 1


def test_thresholds() -> None:
    """They were fixed before anything was measured."""
    claims = (bench.STEP_RATIO, bench.NATIVE_STEP_RATIO, bench.DATA_SHARE, bench.HYBRID_STEP_RATIO)
    assert [claim.threshold.high for claim in claims] == [1.0, 0.60, 0.05, 0.35]


@pytest.mark.parametrize("argument", ["rounds", "threads"])
def test_counts_must_be_positive(argument: str) -> None:
    with pytest.raises(InputError, match=f"{argument}: got 0, but it must be at least 1"):
        bench.bench_training(**{argument: 0})
