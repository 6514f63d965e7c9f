"""Batches of phenotypes: our fastai loader, fastai's TabularPandas, and the limit `torch.index_select`.

Everything is in memory and every epoch is in random order. The limit copies the same columns as float32 and
nothing else: no target, no presence mask, no new order for each epoch, which our loader all has.
"""

import statistics
from collections.abc import Iterable

import numpy as np
import pandas as pd
import polars as pl
import torch
from common import MemoryBiobank, arguments, print_table, print_versions, ratio, seconds, verdict
from fastai.tabular.core import Categorify, Normalize, TabDataLoader, TabularPandas

from ukbmm.biobank.dictionary import Field
from ukbmm.cohort.outcomes import Outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock
from ukbmm.data.loaders import MultiModalDataBlock, MultiModalLoader

TARGETS = {4096: 0.6, 512: 0.5}  # Share of the limit's samples per second by batch size


def draw(participants: int, n_numbers: int, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    "Standard normal numbers, float32, and codes from 1 to 9."
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((participants, n_numbers), dtype=np.float32)
    return numbers, rng.integers(1, 10, (participants, n_codes))


def memory_biobank(numbers: np.ndarray, codes: np.ndarray) -> MemoryBiobank:
    "The same numbers and codes as fields 1, 2, ... of a Biobank."
    columns, fields = {}, {}
    for kind, table in (("continuous", numbers), ("categorical_single", codes)):
        for column in table.T:
            number = len(columns) + 1
            fields[f"p{number}"] = Field(number, f"field {number}", kind)
            columns[f"p{number}"] = pl.Series(np.ascontiguousarray(column))
    return MemoryBiobank(columns, fields)


def our_loader(numbers: np.ndarray, codes: np.ndarray, bs: int) -> MultiModalLoader:
    "The training loader of a data block of phenotypes and a target."
    biobank = memory_biobank(numbers, codes)
    everybody = np.arange(len(biobank))
    outcome = Outcome("regression", "y", "target", "", "y", numbers[:, 0].astype(np.float64))
    blocks = (PhenotypeBlock(list(range(1, len(biobank.columns) + 1))), OutcomeBlock(outcome))
    dls = MultiModalDataBlock(blocks).dataloaders(biobank, everybody, everybody[:1], bs=bs, device="cpu")
    return dls.train


def tabular_pandas(numbers: np.ndarray, codes: np.ndarray) -> TabularPandas:
    "The same table in fastai's own hands."
    names = [f"n{i}" for i in range(numbers.shape[1])], [f"c{i}" for i in range(codes.shape[1])]
    frame = pd.concat(
        [pd.DataFrame(numbers, columns=names[0]), pd.DataFrame(codes, columns=names[1])], axis=1
    )
    frame["y"] = numbers[:, 0]
    return TabularPandas(frame, [Categorify, Normalize], names[1], names[0], "y", reduce_memory=False)


def check(loader: MultiModalLoader, numbers: np.ndarray, codes: np.ndarray) -> None:
    "Stop unless a batch holds what was drawn: codes exactly, numbers to the 11 bits of half precision."
    x, y = loader.one_batch()
    rows = x["row"].numpy()
    values, levels = x["phenotype"]
    expected = ((numbers - numbers.mean(0, dtype=np.float64)) / numbers.std(0, dtype=np.float64))[rows]
    np.testing.assert_allclose(values.numpy(), expected, rtol=2**-11, atol=1e-4)
    np.testing.assert_array_equal(levels.numpy(), codes[rows])
    np.testing.assert_allclose(y[:, 0].numpy(), expected[:, 0], rtol=1e-4, atol=1e-5)


def exhaust(batches: Iterable) -> None:
    "Go through an epoch."
    for _ in batches:
        pass


def measure(
    loader: MultiModalLoader, matrix: torch.Tensor, bs: int, repeats: int, clock: str
) -> dict[str, list[float]]:
    "Seconds of an epoch, ours and the limit's."
    ours, order = loader.new(bs=bs), torch.randperm(len(matrix)).split(bs)
    limit = lambda: exhaust(matrix.index_select(0, rows) for rows in order)  # noqa: E731
    return seconds({"ours": lambda: exhaust(ours), "limit": limit}, repeats, clock)


def main() -> None:
    options = arguments(__doc__)
    size = (4_000, 30, 3) if options.quick else (500_000, 300, 30)
    repeats = options.repeats or (2 if options.quick else 9)
    numbers, codes = draw(*size)
    loader = our_loader(numbers, codes, max(TARGETS))
    check(loader, numbers, codes)
    matrix = torch.from_numpy(np.concatenate([numbers, codes.astype(np.float32)], axis=1))
    taken = {bs: measure(loader, matrix, bs, repeats, options.clock) for bs in TARGETS}
    del loader, matrix
    table = tabular_pandas(numbers, codes)
    for bs in TARGETS:
        peer = TabDataLoader(table, bs=bs, shuffle=True)
        taken[bs] |= seconds({"peer": lambda peer=peer: exhaust(peer)}, 1, options.clock, warm=False)
    print(f"{size[0]:,} participants, {size[1]} numbers and {size[2]} codes")
    print_versions()
    report(taken, size[0])


def report(taken: dict[int, dict[str, list[float]]], participants: int) -> None:
    "Print samples per second, and whether the targets hold."
    rows = []
    for bs, times in taken.items():
        speed = {name: f"{participants / statistics.median(times[name]):,.0f}" for name in times}
        share = ratio(times["limit"], times["ours"])
        over_peer = statistics.median(times["peer"]) / statistics.median(times["ours"])
        target = f"{verdict(share >= TARGETS[bs])} (>= {TARGETS[bs]})"
        rows.append(
            [
                f"{bs:,}",
                speed["ours"],
                speed["peer"],
                speed["limit"],
                f"{share:.2f}",
                f"{over_peer:.1f}",
                target,
            ]
        )
    header = [
        "batch size",
        "ours, samples/s",
        "TabularPandas",
        "limit: index_select",
        "ours / limit",
        "ours / TabularPandas",
        "target",
    ]
    print_table(header, rows)


if __name__ == "__main__":
    main()
