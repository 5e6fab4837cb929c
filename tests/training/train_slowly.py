"""Train `tiny.HYBRID` slowly enough to be killed: python train_slowly.py FOLDER STEPS SECONDS_PER_STEP."""

import sys
import time
from pathlib import Path

import tiny

from mesascope.training.loop import train

if __name__ == "__main__":
    folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    train(tiny.varied(tiny.HYBRID, steps=steps), folder, lambda progress: time.sleep(pause))
