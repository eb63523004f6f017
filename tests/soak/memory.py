"""Trains for a while, with evaluations, pictures and saves, and watches memory and open files.

    python -m tests.soak.memory --minutes 30 [--out memory.json]

Prints how fast the memory of the process grows and how many files it has open, in the second half.
"""

import argparse
import json
import os
import tempfile
import threading
import time

import numpy as np

from mae_jax.runtime.host import keep_freed_memory
from mae_jax.runtime.preemption import StopRequest
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from tests.helpers import tiny_configs

EVERY = 2.0  # seconds between two looks


class _Ends(StopRequest):
    """Stops a run after so many seconds."""

    def __init__(self, seconds: float):
        super().__init__()
        self._end = time.monotonic() + seconds

    def poll(self) -> bool:
        return time.monotonic() > self._end


def _look(samples: list[tuple[float, float, int]], ended: threading.Event) -> None:
    """Adds (seconds, MB of resident memory, open files) until the end."""
    began, page = time.monotonic(), os.sysconf("SC_PAGE_SIZE")
    while not ended.wait(EVERY):
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * page
        files = len(os.listdir("/proc/self/fd"))
        samples.append((time.monotonic() - began, resident / 2**20, files))


def soak(workdir: str, minutes: float) -> list[tuple[float, float, int]]:
    """Samples (seconds, MB, open files) of a run of so many minutes."""
    keep_freed_memory()
    config = tiny_configs.config(
        steps=10**9,
        epochs=0.0,
        optim__warmup_epochs=1.0,
        log_every=20,
        eval_every=100,
        figure_every=200,
        checkpoint__every_steps=50,
    )
    samples: list[tuple[float, float, int]] = []
    ended = threading.Event()
    thread = threading.Thread(target=_look, args=(samples, ended))
    thread.start()
    try:
        loop.run(Pretrain(config, workdir), config, workdir, stop=_Ends(60 * minutes))
    finally:
        ended.set()
        thread.join()
    return samples


def slope(samples: list[tuple[float, float, int]]) -> float:
    """MB per hour, fitted to the second half."""
    seconds, resident, _ = np.array(samples[len(samples) // 2 :]).T
    return float(np.polyfit(seconds / 3600, resident, 1)[0])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", default="", help="file for the samples, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as workdir:
        samples = soak(workdir, options.minutes)
        steps = tiny_configs.metric_lines(workdir)[-1]["step"]
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(samples, file)
    half = samples[len(samples) // 2 :]
    files = [files for _, _, files in half]
    print(
        f"{steps:,} steps in {options.minutes:g} min: {half[0][1]:.0f} MB at half time, "
        f"{half[-1][1]:.0f} MB at the end, {slope(samples):+.1f} MB per hour; "
        f"{min(files)} to {max(files)} open files"
    )


if __name__ == "__main__":
    main()
