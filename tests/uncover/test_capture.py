"""Activations are read from our models and from other people's, and nothing stays behind."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mesascope.errors import InputError
from mesascope.nn import Softmax, Transformer, TransformerConfig
from mesascope.predictor import Predictor
from mesascope.tasks import Sequences, fully_observed_linear
from mesascope.uncover import CapturableModel, HookedModel, InputOf, residual_stream, token_probes

CONFIG = TransformerConfig(
    3, 3, (Softmax(), Softmax()), num_heads=2, key_dim=4, embed_dim=6, mlp_dim=8, layer_norm=True, position_dim=6
)
POINTS: dict[str, str | InputOf] = {
    "embed": InputOf("layers.0"),
    "blocks.0.resid_post": "layers.0",
    "blocks.1.resid_post": "layers.1",
}


class Layer(nn.Module):
    """Adds to the stream and, as many layers do, returns a tuple."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        if x.shape[1] > 20:
            raise RuntimeError("too long")
        return x + self.dropout(x @ self.weight), "cache"


class Foreign(nn.Module):
    """Somebody else's model: nothing about it is ours."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(generator) for _ in range(2))
        self.unused = nn.Identity()

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        x = tokens * 2
        for layer in self.layers:
            x = layer(x)[0]
        return x, None


@pytest.fixture
def sequences(generator: torch.Generator) -> Sequences:
    return fully_observed_linear(n_s=3, length=8).sample(7, generator)


@pytest.fixture
def foreign(generator: torch.Generator) -> Foreign:
    return Foreign(generator)


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_stream_of_a_transformer(sequences: Sequences, generator: torch.Generator) -> None:
    model = Transformer(CONFIG, generator)
    stream = residual_stream(model, sequences, batch_size=3)
    assert stream.labels == ("Inp.", "1", "2")
    assert stream.time_steps == tuple(range(1, 9))
    assert not stream.values.requires_grad
    captured = model.run(sequences.tokens, ["embed", "blocks.*.resid_post"]).activations
    torch.testing.assert_close(stream.values, torch.stack(list(captured.values())).detach())
    torch.testing.assert_close(stream.values[2] @ model.unembed.T, model.predict(sequences))
    one = stream.layer(1)
    assert one.labels == ("1",)
    assert torch.equal(one.values[0], stream.values[1])


def test_stream_of_somebody_elses_module(sequences: Sequences, foreign: Foreign) -> None:
    model = HookedModel(foreign, POINTS, name="theirs")
    stream = residual_stream(model, sequences, batch_size=4)
    expected = [2 * sequences.tokens]
    for layer in foreign.layers:
        expected.append(expected[-1] + expected[-1] @ layer.weight)
    torch.testing.assert_close(stream.values, torch.stack(expected).detach())
    torch.testing.assert_close(model.predict(sequences), expected[-1].detach())
    assert stream.labels == ("Inp.", "1", "2")


def test_both_kinds_are_capturable_and_predict(foreign: Foreign) -> None:
    for model in (Transformer(CONFIG), HookedModel(foreign, POINTS)):
        assert isinstance(model, CapturableModel)
        assert isinstance(model, Predictor)


def test_nothing_stays_behind(sequences: Sequences, foreign: Foreign) -> None:
    foreign.layers[0].eval()
    model = HookedModel(foreign, POINTS)
    model.run(sequences.tokens, ["blocks.*"])
    assert hooks_of(foreign) == 0
    with pytest.raises(RuntimeError, match="too long"):
        model.run(torch.zeros(1, 21, 3), ["embed"])
    assert hooks_of(foreign) == 0
    assert foreign.training
    assert not foreign.layers[0].dropout.training
    assert foreign.layers[1].dropout.training


def test_only_what_is_captured_is_hooked(sequences: Sequences, foreign: Foreign) -> None:
    counts: list[int] = []
    foreign.layers[1].register_forward_pre_hook(lambda *_: counts.append(hooks_of(foreign)))
    result = HookedModel(foreign, POINTS).run(sequences.tokens, ["embed"])
    assert counts == [2]
    assert list(result.activations) == ["embed"]


def test_gradients_pass_through_a_capture(sequences: Sequences, foreign: Foreign) -> None:
    tokens = sequences.tokens.clone().requires_grad_()
    captured = HookedModel(foreign, POINTS).run(tokens, ["blocks.0.resid_post"]).activations
    (gradient,) = torch.autograd.grad(captured["blocks.0.resid_post"][..., 0].sum(), tokens)
    expected = 2 * (torch.eye(3) + foreign.layers[0].weight)[:, 0]
    torch.testing.assert_close(gradient, expected.detach().expand_as(gradient))


def test_predictions_can_lie_anywhere_in_the_output(sequences: Sequences, foreign: Foreign) -> None:
    model = HookedModel(foreign, POINTS, predictions=lambda output: output[0][..., :2])
    assert model.predict(sequences).shape == (7, 8, 2)


@pytest.mark.parametrize("wrong", [lambda output: output[0].mean(1), lambda output: output[0].transpose(0, 1)])
def test_predictions_must_be_one_per_token(sequences: Sequences, foreign: Foreign, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"predictions: got \(.*\), but it must be of shape \[7, 8, n_s\]"):
        HookedModel(foreign, POINTS, predictions=wrong).predict(sequences)


def test_points_must_exist(foreign: Foreign) -> None:
    with pytest.raises(InputError, match=r"points: no submodule is called 'layer\.0'; did you mean 'layers\.0'\?"):
        HookedModel(foreign, {"embed": "layer.0"})
    with pytest.raises(InputError, match=r"points: no submodule is called 'layers\.2'"):
        HookedModel(foreign, {"embed": InputOf("layers.2")})


def test_a_captured_point_runs_exactly_once(sequences: Sequences, foreign: Foreign) -> None:
    with pytest.raises(InputError, match="points: got 'x', but it must be computed once per run, but it was 0 times"):
        HookedModel(foreign, {"x": "unused"}).run(sequences.tokens, ["x"])
    foreign.layers[1] = foreign.layers[0]
    with pytest.raises(InputError, match="points: got 'x', but it must be computed once per run, but it was 2 times"):
        HookedModel(foreign, {"x": "layers.0"}).run(sequences.tokens, ["x"])


def test_what_is_captured_must_be_a_tensor(sequences: Sequences, foreign: Foreign) -> None:
    foreign.unused.register_forward_hook(lambda *_: {"x": 1})
    foreign.layers[1].register_forward_hook(lambda module, arguments, output: (foreign.unused(0), *output)[1:])
    with pytest.raises(InputError, match="module: got an output of type dict, but it must be a tensor"):
        HookedModel(foreign, {"x": "unused"}).run(sequences.tokens, ["x"])


def test_the_stream_needs_its_activations(sequences: Sequences, foreign: Foreign) -> None:
    lacking = {name: point for name, point in POINTS.items() if name != "blocks.0.resid_post"}
    with pytest.raises(InputError, match=r"capture: 'blocks\.0\.resid_post' matches no activation; known: embed"):
        residual_stream(HookedModel(foreign, lacking), sequences)
    wide = Transformer(replace(CONFIG, embed_dim=8, position_dim=8))
    widths = {"embed": InputOf("blocks.0"), "blocks.0.resid_post": "blocks.0.mlp_norm"}
    assert residual_stream(HookedModel(wide, widths), sequences).values.shape == (2, 7, 8, 8)
    points: dict[str, str | InputOf] = {"embed": "0", "blocks.0.resid_post": "1"}
    for ending in (nn.Linear(3, 5), nn.Flatten(), nn.Unflatten(-1, (3, 1))):
        model = HookedModel(nn.Sequential(nn.Identity(), ending), points, predictions=lambda _: sequences.tokens)
        with pytest.raises(InputError, match=r"model: got .*, but it must be one whose residual stream has shape"):
            residual_stream(model, sequences)


class TorchTransformer(nn.Module):
    """A causal Transformer made of torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.embed = nn.Linear(3, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.unembed = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.unembed(self.encoder(self.embed(tokens), mask, is_causal=True))


def test_torchs_own_transformer_can_be_probed(generator: torch.Generator) -> None:
    sequences = fully_observed_linear(n_s=3, length=8).sample(60, generator)
    module = TorchTransformer()
    points = {"embed": "embed", "blocks.0.resid_post": "encoder.layers.0", "blocks.1.resid_post": "encoder.layers.1"}
    model = HookedModel(module, points)
    stream = residual_stream(model, sequences)
    assert stream.labels == ("Inp.", "1", "2")
    torch.testing.assert_close(module.unembed(stream.values[2]), model.predict(sequences))
    found = token_probes(stream, stream, sequences, generator=generator, layer=0, reach=3)
    assert found.model.r2.value[0, -1] > 1 - 1e-9
    assert (found.model.r2.value[0, :-1] < 0.5).all()


def test_arguments_are_checked(sequences: Sequences, foreign: Foreign) -> None:
    model = HookedModel(foreign, POINTS)
    with pytest.raises(InputError, match="batch_size: got 0, but it must be at least 1"):
        residual_stream(model, sequences, batch_size=0)
    with pytest.raises(InputError, match=r"layer: got 3, but it must be at one of the depths Inp\., 1, 2"):
        residual_stream(model, sequences).layer(3)
    for layers in ([], [3], [0, -1]):
        with pytest.raises(InputError, match=r"layers: got .*, but it must be at least one number between 0 and 2"):
            residual_stream(model, sequences, layers=layers)


def test_some_depths_can_be_read_alone(sequences: Sequences, foreign: Foreign) -> None:
    model = HookedModel(foreign, POINTS)
    everything, some = residual_stream(model, sequences), residual_stream(model, sequences, layers=[2, 0])
    assert some.labels == ("2", "Inp.")
    assert torch.equal(some.values, everything.values[[2, 0]])
    assert torch.equal(some.layer(2).values, everything.layer(2).values)
    with pytest.raises(InputError, match=r"layer: got 1, but it must be at one of the depths 2, Inp\."):
        some.layer(1)
