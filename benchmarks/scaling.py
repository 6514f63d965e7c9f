"""One process and two: participants a second that train the network of training.py, with the same whole batch and one thread each.

Two processes share every batch and exchange gradients over gloo, as `accelerate launch` has it. Twice the pace is the limit.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import print_table, print_versions
from training import loaders, make_biobank

from ukbmm.training.distributed import Distributed, join
from ukbmm.training.learner import fusion_learner
from ukbmm.training.watching import Speed

CONFIG = Path(__file__).parents[1] / "configs" / "accelerate" / "cpu-2.yaml"


def train(bs: int, batches: int, epochs: int) -> None:
    "Train in this process, or in a share of several; the first prints its pace."
    torch.set_num_threads(1)
    processes, speed = join(), Speed()
    with tempfile.TemporaryDirectory() as folder:
        biobank, target = make_biobank(Path(folder), max(4_000, bs * (batches + 2)), 1_000)
        dls = loaders(biobank, target, batches, bs)
        cbs = [speed, Distributed(processes)] if processes.world > 1 else [speed]
        learn = fusion_learner(dls, patience=None, cbs=cbs)
        with learn.no_bar(), learn.no_logging():
            learn.fit(epochs)
    if processes.first:
        pace = statistics.median(epoch["samples_per_s"] for epoch in speed.epochs[1:])
        print(f"pace {processes.world} {pace}")


def pace(processes: int, bs: int, batches: int, epochs: int) -> float:
    "Participants a second of so many processes."
    work = [__file__, "--train", str(bs), str(batches), str(epochs)]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG)] if processes > 1 else []
    done = subprocess.run([sys.executable, *launch, *work], stdout=subprocess.PIPE, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"pace {processes} ")]
    return float(line.split()[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small size, to see that it works")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; the median counts")
    parser.add_argument("--train", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(*options.train)
        return
    print_versions()
    rows = []
    for bs, batches in ((64, 4),) if options.quick else ((64, 100), (512, 20), (4096, 4)):
        epochs = 3 if options.quick else 5
        rounds = [
            [pace(processes, bs, batches, epochs) for processes in (1, 2)] for _ in range(options.repeats)
        ]
        one, two = (statistics.median(column) for column in zip(*rounds, strict=True))
        rows.append([f"{bs:,}", f"{one:,.0f}", f"{two:,.0f}", f"{two / one:.2f}"])
    print_table(["whole batch", "one process, participants/s", "two processes", "two / one"], rows)


if __name__ == "__main__":
    main()
