"""Train without end in two processes, to be killed: python train_in_processes.py FOLDER."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mesascope.runs import RunStore, train_all
from training.tiny import HYBRID, varied

if __name__ == "__main__":
    configs = {f"{seed}": varied(HYBRID, steps=10**6, checkpoint_every=1, seed=seed) for seed in range(3)}
    train_all(configs, RunStore(Path(sys.argv[1])), 2)
