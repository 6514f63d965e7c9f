"""From raw columns to what a network reads: special values, means and deviations, multiple choices.

The limit is a copy of the same matrix in single precision; pandas does what most people write. Values are compared
before anything is timed. "Together" starts from raw numbers in a matrix; "the block" reads the columns of a store besides, one by one,
puts them side by side and ends in half precision, which a study does once.
"""

import numpy as np
import pandas as pd
import polars as pl
from common import MemoryBiobank, arguments, print_table, print_versions, ratio, seconds, verdict

from ukbmm.biobank.cleaning import clean_columns, recode, rules_for
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.processing import MultiHot
from ukbmm.data.preprocessing import Standardiser

OVER_COPY, OVER_SCATTER = 5, 2  # Targets
HOURS = 1070  # Hours of television a day: -10 is less than one, -1 is not known, -3 was not answered
POSITIONS, CODES, PER_PERSON = 34, 450, 2.6  # Of field 20002, self-reported illnesses


def draw_hours(participants: int, n_columns: int) -> dict[str, pl.Series]:
    "Whole numbers, a tenth of them special and three tenths missing."
    rng, columns = np.random.default_rng(0), {}
    for i in range(n_columns):
        hours = np.where(
            rng.random(participants) < 0.1,
            rng.choice([-10, -1, -3], participants),
            rng.poisson(3, participants),
        )
        known = pl.Series(rng.random(participants) > 0.3)
        columns[f"p{i + 1}"] = pl.select(pl.when(known).then(pl.Series(hours, dtype=pl.Int32))).to_series()
    return columns


def as_matrix(columns: dict[str, pl.Series]) -> np.ndarray:
    "Raw values as floating point, NaN where missing."
    return np.stack(
        [column.cast(pl.Float32).fill_null(np.nan).to_numpy() for column in columns.values()], axis=1
    )


def by_pandas(frame: pd.DataFrame) -> pd.DataFrame:
    "Special values, standardising and filling with the mean, as most people write it."
    clean = frame.replace({-1: np.nan, -3: np.nan, -10: 0.5})
    return ((clean - clean.mean()) / clean.std(ddof=0)).fillna(0.0)


def compare_numbers(participants: int, n_columns: int, repeats: int, clock: str) -> None:
    "Raw whole numbers to a standardised matrix: by cleaning, by the block that does all of it, and by pandas."
    from ukbmm.data.blocks import PhenotypeBlock

    columns, hours = draw_hours(participants, n_columns), Dictionary.builtin()[HOURS]
    fields, rules = dict.fromkeys(columns, hours), [rules_for(hours)] * n_columns
    biobank, table = MemoryBiobank(columns, fields), pl.DataFrame(columns)
    raw, everybody = as_matrix(columns), np.arange(participants)
    frame, copy = pd.DataFrame(raw), np.empty_like(raw)
    chosen = list(range(1, n_columns + 1))

    def together(values: np.ndarray) -> np.ndarray:
        recode(values, rules)
        return Standardiser().fit(values, everybody)(values, np.float32, fill=0.0)

    np.testing.assert_allclose(together(raw.copy()), by_pandas(frame).to_numpy(), atol=2e-3)
    fresh = [raw.copy() for _ in range(repeats + 1)]  # it changes the numbers that it is given
    taken = seconds(
        {
            "limit: copying the matrix": lambda: np.copyto(copy, raw),
            "ours: together": lambda: together(fresh.pop()),
            "ours: the block": lambda: PhenotypeBlock(chosen).fit(biobank, everybody),
            "ours: columns, with kinds of missing": lambda: clean_columns(table, fields),
            "peer: pandas, together": lambda: by_pandas(frame),
        },
        repeats,
        clock,
    )
    limit, rows = taken["limit: copying the matrix"], []
    for way, times in taken.items():
        over = ratio(times, limit)
        target = f"{verdict(over <= OVER_COPY)} (<= {OVER_COPY})" if way == "ours: together" else ""
        seconds_each = f"{np.median(times):.3f}"
        rows.append(
            [way, seconds_each, f"{over:.1f}", f"{ratio(taken['peer: pandas, together'], times):.1f}", target]
        )
    print(f"{participants:,} participants, {n_columns} columns of whole numbers; {clock} time")
    print_table(["way", "s", "times copying", "pandas / it", "target"], rows)


def draw_illnesses(participants: int) -> pl.Series:
    "Lists of codes as field 20002 has them: few a person, some codes far more often than others."
    rng = np.random.default_rng(0)
    counts = np.minimum(rng.poisson(PER_PERSON, participants), POSITIONS)
    codes = 1000 + np.minimum(rng.zipf(1.3, counts.sum()), CODES).astype(np.int32)
    ends = np.cumsum(counts)[:-1]
    return pl.Series(np.split(codes, ends), dtype=pl.List(pl.Int32))


def scatter(people: np.ndarray, codes: np.ndarray, every: np.ndarray, participants: int) -> np.ndarray:
    "A table of noughts and ones, by NumPy."
    out = np.zeros((participants, len(every)), np.uint8)
    out[people, np.searchsorted(every, codes)] = 1
    return out


def compare_choices(participants: int, repeats: int, clock: str) -> None:
    "A multiple choice to a bit for each code."
    lists, everybody = draw_illnesses(participants), np.arange(participants)
    people = np.repeat(everybody, lists.list.len().to_numpy())
    codes = lists.explode(empty_as_null=False).to_numpy()
    every, hot = np.unique(codes), MultiHot(1).fit(lists, everybody)
    bits = np.unpackbits(hot(lists), axis=1, bitorder="little")[:, 1 : 1 + len(hot.codes)]
    np.testing.assert_array_equal(bits, scatter(people, codes, every, participants))
    taken = seconds(
        {
            "ours: bits": lambda: hot(lists),
            "ours: codes found, then bits": lambda: MultiHot(1).fit(lists, everybody)(lists),
            "peer: NumPy's scatter": lambda: scatter(people, codes, every, participants),
        },
        repeats,
        clock,
    )
    rows = []
    for way, times in taken.items():
        over = ratio(times, taken["peer: NumPy's scatter"])
        target = f"{verdict(over <= OVER_SCATTER)} (<= {OVER_SCATTER})" if way == "ours: bits" else ""
        rows.append([way, f"{np.median(times):.4f}", f"{over:.2f}", target])
    print(f"{participants:,} participants, {len(every)} codes, {PER_PERSON} a person; {clock} time")
    print_table(["way", "s", "it / scatter", "target"], rows)


def main() -> None:
    options = arguments(__doc__)
    print_versions("numpy", "polars", "pandas")
    participants, n_columns = (2_000, 40) if options.quick else (100_000, 500)
    repeats = options.repeats or 5
    compare_numbers(participants, n_columns, repeats, options.clock)
    compare_choices(participants, repeats, options.clock)


if __name__ == "__main__":
    main()
