"""Synthetic results for the tests of the report: the shapes of the paper's figures, none of its numbers."""

import numpy as np

from mesascope.claims import Claim, MeasuredClaim, Threshold
from mesascope.figures import Figure, HeatmapPanel, Line, LinePanel, Table
from mesascope.report import Report

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> & $x_1$'


def loss_curves(generator: np.random.Generator) -> Figure:
    """Two rows of two panels: training curves, errors in context, depths, and a probe on a logarithmic axis."""
    steps = np.linspace(1, 1300, 60)
    times = np.arange(1.0, 51.0)

    def seeds(mean: np.ndarray, noise: float) -> np.ndarray:
        shift, jitter = generator.standard_normal((5, 1)), generator.standard_normal((5, mean.size))
        return mean * (1 + noise * shift + noise / 4 * jitter)

    training = LinePanel(
        "A  One linear layer learns one gradient step",
        "training step",
        "test loss",
        (
            Line.over_seeds("linear, 1 layer", steps, seeds(0.9 + 1.1 * np.exp(-steps / 150), 0.03)),
            Line.over_seeds("interpolation", steps, seeds(0.9 + 0.6 * np.exp(-steps / 150), 0.01), "hypothesis", 2),
            Line("one gradient step", steps, np.full_like(steps, 0.9), "hypothesis", 0),
            Line.over_seeds("mesa layer", steps, seeds(0.3 + 0.9 * np.exp(-steps / 200), 0.05), "model", 1),
            Line("optimum, stored", steps, np.full_like(steps, 0.27), "reference", 4),
        ),
    )
    fall = 1.5 * np.exp(-times / 18) + 0.3
    in_context = LinePanel(
        "B  Error falls within the sequence",
        "time step t",
        "next-token error",
        (
            Line.over_seeds("linear, 1 layer", times, seeds(fall, 0.04)),
            Line("one gradient step", times, fall * 1.01, "hypothesis", 0),
        ),
        y_limits=(0.0, 2.0),
    )
    by_depth = []
    for colour, depth in enumerate((1, 2, 4, 6)):
        curve = fall / depth**0.5
        by_depth.append(Line.over_seeds(f"linear, depth {depth}", times, seeds(curve, 0.03), "model", colour))
        by_depth.append(Line(f"Proposition 2, {depth} steps", times, curve, "hypothesis", colour))
    by_depth.append(Line.over_seeds("mesa layer", times, seeds(fall / 3, 0.03), "model", 5))
    depths = LinePanel("C  Depth helps", "time step t", "next-token error", tuple(by_depth))
    by_layer = []
    for layer in range(7):
        errors = seeds(10 ** (-layer / 4) * fall, 0.1)
        by_layer.append(Line.over_seeds(f"layer {layer}" if layer else "input", times, errors, "model", layer))
    late, best = times[20:], fall[20:] / 60
    by_layer.append(Line("least squares", late, best, "reference", 7, best / 1.5 - 0.006, best * 1.3))
    title = "D  Target probe, layer by layer"
    probe = LinePanel(title, "time step t", "probe error", tuple(by_layer), log_y=True)
    caption = (
        "Test loss during training (A) and error at every position of unseen sequences (B, C) of linear-attention "
        "models, beside the algorithms they are claimed to run; D shows how well a linear probe reads the target "
        "from the hidden states of each layer. See arXiv 2309.05858, Figure 4."
    )
    return Figure(
        "learning_curves", "Linear models descend gradients in context", caption, (training, in_context, depths, probe)
    )


def weight_products(generator: np.random.Generator) -> Figure:
    """Two heads by two products of 40 x 40 with blocks of 10."""
    panels = []
    for head in (1, 2):
        for name in ("W_Kᵀ W_Q", "P W_V"):
            matrix = 0.01 * generator.standard_normal((40, 40))
            rows, columns = (slice(20, 30), slice(10, 20)) if name.startswith("W") else (slice(0, 10), slice(30, 40))
            matrix[rows, columns] += (-0.2 if head == 2 else 0.2) * np.eye(10)
            labels = ("y", "x", "x'", "0")
            panels.append(HeatmapPanel(f"Head {head}: {name}", "column", "row", matrix, 0.2, 10, labels))
    caption = (
        "Products of the weights of a trained layer. The construction predicts diagonal blocks where they are seen."
    )
    return Figure("weight_products", "The weights match the construction", caption, tuple(panels))


def claims() -> tuple[MeasuredClaim, ...]:
    """Passed, failed and not finite, in an order that is not that of the page."""
    paper = "arXiv 2309.05858, Figure 4A"
    first = Claim(
        "fig4.one_layer_is_one_step",
        "The loss of the one-layer model differs from one gradient step by this share of it.",
        paper,
        "converges to it",
        Threshold(high=0.03),
    )
    ratio = "Loss of the mesa layer over loss of the linear layer."
    second = Claim("fig4.mesa_beats_linear", ratio, paper, "0.21", Threshold(high=0.4))
    depth = "Loss with six layers over loss with one."
    third = Claim("fig4.depth_helps", depth, "arXiv 2309.05858, Figure 4D", "not given", Threshold(0.1, 0.5))
    probe = "Probe error of layer 6 over that of the input."
    fourth = Claim("fig4.probe", probe, "stored curve", "not given", Threshold(low=0.2))
    return (
        first.measure(0.0124, (0.0119, 0.0131, 0.0122)),
        second.measure(0.31, (0.3, 0.31, 0.32), "Quick profile: 3 seeds instead of 5."),
        third.measure(0.6123, (0.58, 0.64), "Two seeds only, and trained for a tenth of the steps."),
        fourth.measure(float("nan"), (float("nan"), 0.3)),
    )


def report() -> Report:
    """Everything at once."""
    generator = np.random.default_rng(0)
    rows = tuple((f"linear, {depth} layers", depth, 0.9 / depth, "yes") for depth in range(1, 8))
    return Report(
        title="Linear self-attention runs gradient descent in its forward pass (Figure 4)",
        introduction=(
            "A Transformer is trained to continue sequences of a random linear system that is new in every sequence. "
            "To do well it must learn the system while it reads. This page asks which learning algorithm it runs.",
            "Each figure compares a trained model with an algorithm written down by hand; if their curves coincide on "
            "sequences that neither has seen, the algorithm describes the model. See arXiv 2309.05858v2.",
        ),
        command="mesascope run fig4_linear_attention --profile quick --seeds 0 1 2 --out runs/fig4",
        profile="quick",
        claims=claims(),
        configuration={"type": "Fig4", "seeds": [0, 1, 2], "task": {"type": "LinearDynamics", "n_s": 10}},
        environment={
            "mesascope": "0.1.0",
            "python": "3.11.2",
            "torch": "2.13.0",
            "processor": "Demo (AVX2)",
            "cores": 2,
        },
        seconds=754.2,
        reductions=(
            "3 seeds instead of 5.",
            "400 training steps instead of 1300, and batches of 64 sequences instead of 256.",
        ),
        figures=(loss_curves(generator), weight_products(generator)),
        tables=(Table("final_losses", "Final losses", ("model", "layers", "loss", "converged"), rows),),
        notes=(
            "The seed sets the initial weights and the training sequences; test sequences are the same for all seeds.",
        ),
    )
