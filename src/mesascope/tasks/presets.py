"""The tasks of the paper by name, with its settings (arXiv 2309.05858; defaults as in `Dynamics`)."""

from mesascope.tasks.dynamics import ClipStates, Dynamics, GaussianEmission, MLPFeatures
from mesascope.tasks.tokens import PlainTokens, TokenScheme
from mesascope.tasks.transitions import ContractingReal, FixedOrthogonal


def fully_observed_linear(n_s: int = 10, length: int = 50, tokens: TokenScheme = PlainTokens()) -> Dynamics:
    """s_{t+1} = W* s_t + noise with a fresh orthogonal W* per sequence (the default task)."""
    return Dynamics(n_s=n_s, n_h=n_s, length=length, tokens=tokens)


def partially_observed_linear(
    n_s: int = 5, n_h: int = 15, length: int = 50, tokens: TokenScheme = PlainTokens()
) -> Dynamics:
    """As above with s_t = C* h_t, entries of C* of standard deviation 0.5."""
    return Dynamics(n_s=n_s, n_h=n_h, length=length, emission=GaussianEmission(), tokens=tokens)


def nonlinear(n_s: int = 10, length: int = 50, tokens: TokenScheme = PlainTokens()) -> Dynamics:
    """s_{t+1} = W* g(s_t) + noise with normalised MLP* features g, one fixed MLP* for the task."""
    return Dynamics(n_s=n_s, n_h=n_s, length=length, features=MLPFeatures(), tokens=tokens)


def contracting_linear(n_s: int = 10, length: int = 50, tokens: TokenScheme = PlainTokens()) -> Dynamics:
    """W* with real eigenvalues in [0.3, 0.9], every new state clipped to [-2, 2] (Fig. 11)."""
    return Dynamics(n_s=n_s, n_h=n_s, length=length, transition=ContractingReal(), clip=ClipStates(2.0), tokens=tokens)


def fixed_teacher(n_s: int = 10, length: int = 50, seed: int = 42, tokens: TokenScheme = PlainTokens()) -> Dynamics:
    """One W* for all sequences: nothing has to be learned in context (Fig. 12)."""
    return Dynamics(n_s=n_s, n_h=n_s, length=length, transition=FixedOrthogonal(seed), tokens=tokens)
