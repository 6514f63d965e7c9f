"""What the benchmarks share: fair timing, a table on the screen, a Biobank that lives in memory."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version

import numpy as np
import polars as pl
import torch

from ukbmm.biobank.dictionary import Field
from ukbmm.biobank.store import Biobank


class MemoryBiobank(Biobank):
    "A Biobank of columns in memory; a block asks it for the same things as one on disk."

    def __init__(self, columns: dict[str, pl.Series], fields: dict[str, Field]):
        self.series, self.fields = columns, fields
        sizes = {len(column) for column in columns.values()}
        self.manifest = {"n_participants": sizes.pop(), "columns": dict.fromkeys(columns, "memory")}

    def field(self, column: str) -> Field:
        return self.fields[column]

    special_values = None

    def read(self, columns: Iterable[str], rows: np.ndarray | None = None) -> pl.DataFrame:
        return pl.DataFrame([self.series[name].rename(name) for name in columns])


def arguments(what: str) -> argparse.Namespace:
    "The options that every benchmark has."
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument(
        "--quick", action="store_true", help="a small size, to see that it works; not to be quoted"
    )
    parser.add_argument("--repeats", type=int, help="how often each thing is timed")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu leaves out what other programs take"
    )
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice if left out")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def seconds(
    calls: dict[str, Callable[[], object]], repeats: int, clock: str = "wall", warm: bool = True
) -> dict[str, list[float]]:
    "Time calls in turn, `repeats` rounds after one to warm up, in turning order, so that noise meets all alike."
    now = time.process_time if clock == "cpu" else time.perf_counter
    taken = {name: [] for name in calls}
    for round_ in range(repeats + warm):
        for name, call in list(calls.items())[:: -1 if round_ % 2 else 1]:
            start = now()
            call()
            if round_ >= warm:
                taken[name].append(now() - start)
    return taken


def ratio(above: list[float], below: list[float]) -> float:
    "The median over rounds of `above` / `below`; each round's two were taken one after the other."
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    "Print a Markdown table; the first column is text, the others are numbers."
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in [header, rule, *rows]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def verdict(holds: bool) -> str:
    "How a target is reported."
    return "holds" if holds else "MISSED"


def print_versions(*packages: str) -> None:
    "Say what was measured, for the record."
    found = [f"{name} {version(name)}" for name in ("ukbmm", "torch", "fastai", *packages)]
    print(f"{', '.join(found)}; torch uses {torch.get_num_threads()} threads", flush=True)
