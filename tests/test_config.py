"""Configurations: lossless JSON, errors that name the field, hashes that name runs."""

import dataclasses
import json
import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesascope import tasks
from mesascope.config import config_hash, from_json, to_json
from mesascope.errors import InputError
from mesascope.nn import (
    DPFP,
    ForgetGate,
    Linear,
    Mesa,
    MixedKey,
    PreviousKey,
    Softmax,
    TransformerConfig,
    UnitNorm,
    WriteGate,
    architectures,
)
from mesascope.training.config import ClipGradNorm, ClipGradValue, ConstantRate, TrainingConfig, WarmupCosine
from mesascope.training.presets import paper_trainings

TASKS: dict[str, tasks.Dynamics | tasks.FewShotRegression] = {
    "full": tasks.fully_observed_linear(),
    "full, constructed": tasks.fully_observed_linear(tokens=tasks.ConstructedTokens(3)),
    "partial": tasks.partially_observed_linear(tokens=tasks.WindowTokens(3)),
    "nonlinear": tasks.nonlinear(),
    "contracting": tasks.contracting_linear(),
    "contracting Gaussian": tasks.Dynamics(transition=tasks.ContractingGaussian(), clip=tasks.ClipSequence()),
    "fixed teacher": tasks.fixed_teacher(),
    "few-shot": tasks.FewShotRegression(pairs=(30, 30)),
    "few-shot, EOS": tasks.FewShotRegression(layout=tasks.EOSLayout(), max_length=224),
    "few-shot, prefix": tasks.FewShotRegression(layout=tasks.PrefixLayout(5)),
}
ARCHITECTURES = {
    "Lin-6": architectures.constructed_linear(6),
    "Softmax-2": architectures.constructed_softmax(2),
    "Mesa-1": architectures.constructed_mesa(initial_ridge=0.1),
    "Full-softmax-7": architectures.full_softmax(),
    "Hybrid-mesa": architectures.hybrid_mesa(),
    "Partial-hybrid": architectures.partial_hybrid(),
    "Nonlin-softmax-7": architectures.nonlinear_softmax(),
    "Linearisation": architectures.linearisation_softmax(6),
}
EVERY = {**TASKS, **ARCHITECTURES, **paper_trainings()}

TINY = TrainingConfig(
    task=tasks.fully_observed_linear(n_s=3, length=8),
    model=TransformerConfig(3, 3, (Softmax(), Mesa(0.5)), num_heads=1, key_dim=4, embed_dim=6),
    schedule=ConstantRate(0.001),
    steps=10,
)


def through_text(config: Any) -> Any:
    return from_json(type(config), json.loads(json.dumps(to_json(config))))


@pytest.mark.parametrize("name", EVERY)
def test_round_trip(name: str) -> None:
    config = EVERY[name]
    assert through_text(config) == config
    assert config_hash(through_text(config)) == config_hash(config)


def test_different_configurations_have_different_hashes() -> None:
    hashes = {name: config_hash(config) for name, config in EVERY.items()}
    assert len(set(hashes.values())) == len(hashes)


def test_every_object_carries_its_type() -> None:
    stored = to_json(TINY)
    assert stored["type"] == "TrainingConfig"
    assert stored["task"]["tokens"] == {"type": "PlainTokens"}
    assert stored["model"]["attention"] == [{"type": "Softmax"}, {"type": "Mesa", "initial_ridge": 0.5}]
    assert stored["betas"] == [0.9, 0.999]


mesas = st.fixed_dictionaries(
    {"initial_ridge": st.floats(1e-6, 1e6)},
    optional={
        "ridge_per": st.sampled_from(["head", "coordinate"]),
        "smallest_ridge": st.floats(0, 1e-7),
        "features": st.sampled_from([(), (UnitNorm(),), (DPFP(2), UnitNorm()), (DPFP(),)]),
        "key_shift": st.none() | st.just(PreviousKey()) | st.floats(0.1, 0.9).map(MixedKey),
        "forget": st.none() | st.floats(0.1, 0.9).map(ForgetGate),
        "write": st.none() | st.floats(0.1, 9).map(WriteGate),
        "regularizer": st.sampled_from([None, "initial", "constant"]),
    },
)
kinds = st.one_of(st.just(Softmax()), st.just(Linear()), mesas)
schedules = st.one_of(
    st.floats(1e-9, 1.0).map(ConstantRate),
    st.builds(WarmupCosine, st.floats(1e-4, 1.0), st.integers(0, 10), st.integers(11, 100), st.floats(0, 1e-5)),
)
clips = st.one_of(st.none(), st.floats(1e-3, 1e3).map(ClipGradValue), st.floats(1e-3, 1e3).map(ClipGradNorm))
# parts, not configurations: type checking samples the items of a tuple at random, which strategies must not do
parts = st.fixed_dictionaries(
    {
        "attention": st.lists(kinds, min_size=1, max_size=3).map(tuple),
        "noise_std": st.floats(0, 10),
        "schedule": schedules,
        "gradient_clip": clips,
        "steps": st.integers(1, 10**6),
        "seed": st.integers(0, 2**32 - 1),
        "weight_decay": st.floats(0, 1),
        "betas": st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        "snapshot_every": st.none() | st.integers(1, 1000),
    }
)


def assembled(parts: dict[str, Any]) -> TrainingConfig:
    task = dataclasses.replace(TINY.task, noise_std=parts["noise_std"])
    kinds = tuple(Mesa(**kind) if isinstance(kind, dict) else kind for kind in parts["attention"])
    model = dataclasses.replace(TINY.model, attention=kinds)
    rest = {name: value for name, value in parts.items() if name not in ("noise_std", "attention")}
    return dataclasses.replace(TINY, task=task, model=model, **rest)


@given(parts, parts)
def test_round_trip_of_any_training(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = assembled(first), assembled(second)
    assert through_text(one) == one
    assert (config_hash(one) == config_hash(other)) == (one == other)


def test_hash_is_stable() -> None:
    """A hash names run folders on disk: when this test fails, stored runs lose their configuration."""
    assert config_hash(TINY) == "8a9ecf85c7fc"
    assert config_hash(paper_trainings()["lin-1"]) == "d44507d9daa1"


EVERY_OPTION = Mesa(
    2.0,
    ridge_per="coordinate",
    smallest_ridge=0.25,
    features=(DPFP(2), UnitNorm()),
    key_shift=MixedKey(0.7),
    forget=ForgetGate(0.9),
    write=WriteGate(2.0),
    regularizer="initial",
)


def test_fields_that_came_later_leave_stored_files_as_they_are() -> None:
    """Where they say nothing new they are not stored, and a file without them means what it always did."""
    assert to_json(Mesa(0.5)) == {"type": "Mesa", "initial_ridge": 0.5}
    assert from_json(Mesa, {"type": "Mesa", "initial_ridge": 0.5}) == Mesa(0.5)
    assert to_json(Mesa(0.5, forget=ForgetGate())) == {
        "type": "Mesa",
        "initial_ridge": 0.5,
        "forget": {"type": "ForgetGate", "initial": 0.99},
    }
    spelt_out = {**to_json(EVERY_OPTION), "smallest_ridge": 0, "features": [], "key_shift": None, "regularizer": None}
    read = from_json(Mesa, spelt_out)
    assert read == dataclasses.replace(EVERY_OPTION, smallest_ridge=0.0, features=(), key_shift=None, regularizer=None)
    assert config_hash(Mesa(0.5, smallest_ridge=0)) == config_hash(Mesa(0.5))
    with pytest.raises(InputError, match=r"^config\.initial_ridge: field of Mesa is missing"):
        from_json(Mesa, {"type": "Mesa", "write": None})


def test_every_option_of_a_mesa_layer_is_stored_and_named() -> None:
    stored = to_json(EVERY_OPTION)
    assert list(stored) == ["type", *(field.name for field in dataclasses.fields(Mesa))]
    assert through_text(EVERY_OPTION) == EVERY_OPTION
    hashes = {
        config_hash(dataclasses.replace(Mesa(2.0), **{name: getattr(EVERY_OPTION, name)})) for name in list(stored)[1:]
    }
    assert len(hashes) == len(stored) - 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ridge_per", "row", "config.ridge_per: got 'row', but it must be one of 'head', 'coordinate'"),
        ("smallest_ridge", -1.0, "config.smallest_ridge: got -1.0, but it must be at least 0"),
        ("smallest_ridge", 2.0, "config.initial_ridge: got 2.0, but it must be greater than 2"),
        ("features", [{"type": "Fourier"}], "config.features[0].type: got 'Fourier'; known: DPFP, LayerNorm, UnitNorm"),
        ("features", [{"type": "DPFP", "nu": 0}], "config.features[0].nu: got 0, but it must be at least 1"),
        (
            "key_shift",
            {"type": "MixedKey", "initial": 1.0},
            "config.key_shift.initial: got 1.0, but it must be between",
        ),
        ("forget", {"type": "ForgetGate", "initial": 0.0}, "config.forget.initial: got 0.0, but it must be between 0"),
        ("write", {"type": "WriteGate", "largest": 0.0}, "config.write.largest: got 0.0, but it must be greater than"),
        ("regularizer", "none", "config.regularizer: got 'none', but it must be one of 'initial', 'constant'"),
        ("ridges", 1, "config.ridges: no such field in Mesa; did you mean 'ridge_per'?"),
    ],
)
def test_what_is_wrong_with_a_mesa_layer_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(Mesa, {**to_json(EVERY_OPTION), field: value})
    assert message in str(error.value)


def test_equal_configurations_have_equal_hashes() -> None:
    for wholes, floats in (
        (ConstantRate(1), ConstantRate(1.0)),
        (tasks.Dynamics(noise_std=0), tasks.Dynamics(noise_std=0.0)),
        (dataclasses.replace(TINY, betas=(0, 0.5)), dataclasses.replace(TINY, betas=(0.0, 0.5))),
        (dataclasses.replace(TINY.model, activation_clip=4), dataclasses.replace(TINY.model, activation_clip=4.0)),
    ):
        assert wholes == floats
        assert config_hash(wholes) == config_hash(floats)


def changed(path: str, value: Any) -> Any:
    """The JSON of TINY with one entry set, or removed where `value` is Ellipsis."""
    stored = json.loads(json.dumps(to_json(TINY)))
    *parents, last = path.split(".")
    place = stored
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    if value is ...:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return stored


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("setps", 3, "config.setps: no such field in TrainingConfig; did you mean 'steps'?"),
        ("model.num_head", 3, "config.model.num_head: no such field in TransformerConfig; did you mean 'num_heads'?"),
        ("task.tokens.window", 3, "config.task.tokens.window: no such field in PlainTokens; known: "),
        ("steps", ..., "config.steps: field of TrainingConfig is missing"),
        ("task.clip.bound", ..., "config.task.clip.bound: field of ClipStates is missing"),
        ("steps", "ten", "config.steps: got 'ten', but it must be of type int"),
        ("steps", 10.0, "config.steps: got 10.0, but it must be of type int"),
        ("steps", True, "config.steps: got True, but it must be of type int"),
        ("steps", None, "config.steps: got None, but it must be of type int"),
        ("model.layer_norm", 1, "config.model.layer_norm: got 1, but it must be of type bool"),
        ("task.noise_std", "0.1", "config.task.noise_std: got '0.1', but it must be of type float"),
        ("task.noise_std", True, "config.task.noise_std: got True, but it must be of type float"),
        ("model.embed_dim", 1.5, "config.model.embed_dim: got 1.5, but it must be of type int"),
        ("task.initial", "gauss", "config.task.initial: got 'gauss', but it must be one of 'uniform', 'normal'"),
        ("betas", [0.9], "config.betas: got 1 items, but it must have 2"),
        ("betas", 0.9, "config.betas: got 0.9, but it must be a list"),
        ("betas.1", "x", "config.betas[1]: got 'x', but it must be of type float"),
        ("model.attention.1.initial_ridge", "x", "config.model.attention[1].initial_ridge: got 'x'"),
        ("model.attention.0.type", "softmax", "config.model.attention[0].type: got 'softmax'; did you mean 'Softmax'?"),
        ("model.attention.0.type", "Performer", "got 'Performer'; known: Linear, Mesa, Softmax"),
        ("schedule.type", ..., "config.schedule.type: got None; known: ConstantRate, WarmupCosine"),
        ("task.tokens", "plain", "config.task.tokens: got 'plain', but it must be one of PlainTokens, "),
        ("task", 3, "config.task: got 3, but it must be an object with the fields of Dynamics"),
        ("task.type", "Linear", "config.task.type: got 'Linear', but it must be 'Dynamics'"),
        # values out of range keep the path
        ("task.noise_std", -1.0, "config.task.noise_std: got -1.0, but it must be at least 0"),
        ("model.attention.1.initial_ridge", 0, "config.model.attention[1].initial_ridge: got 0.0"),
        ("model.token_dim", 4, "config.model.token_dim: got 4, but the tokens of the task have size 3"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(TrainingConfig, changed(path, value))
    assert message in str(error.value)


def test_the_path_starts_where_the_caller_says() -> None:
    with pytest.raises(InputError, match=r"^runs\[2\]\.rate: field of ConstantRate is missing"):
        from_json(ConstantRate, {"type": "ConstantRate"}, "runs[2]")


def test_an_int_may_stand_for_a_float() -> None:
    rate = from_json(ConstantRate, {"rate": 1}).rate
    assert (rate, type(rate)) == (1.0, float)


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int


@dataclasses.dataclass(frozen=True)
class Outer:
    mixed: int | str | Inner | None
    many: tuple[Inner, ...]
    choice: Literal["a", 2]


@pytest.mark.parametrize(
    "config",
    [Outer(1, (), "a"), Outer("x", (Inner(1), Inner(2)), 2), Outer(Inner(3), (Inner(1),), "a"), Outer(None, (), 2)],
    ids=str,
)
def test_unions(config: Outer) -> None:
    assert through_text(config) == config


def test_a_value_no_member_of_a_union_accepts() -> None:
    with pytest.raises(InputError, match=r"config\.mixed: got 1\.5, but it must be one of int, str, Inner, NoneType"):
        from_json(Outer, {"mixed": 1.5, "many": [], "choice": "a"})


def test_numbers_keep_their_bits() -> None:
    for value in (0.1, 1 / 3, 5e-324, math.pi * 1e300, 2.0**53 + 2):
        assert through_text(ConstantRate(value)).rate == value


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_must_be_finite(value: float) -> None:
    with pytest.raises(InputError, match=r"config\.rate: got (inf|nan), but it must be a finite number"):
        from_json(ConstantRate, {"rate": value})
