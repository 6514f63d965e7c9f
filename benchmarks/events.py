"""Health records as sequences: reading them, gathering batches, and what packing saves in the encoder.

Reading is compared with the same histories made in pandas, and with the limit, which reads the two parquet files and does nothing else.
Batches are compared with a gather from a rectangle as wide as the longest history, which takes many times the memory. The encoder is compared with itself without packing.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import torch
from common import MemoryBiobank, arguments, print_table, print_versions, ratio, seconds, verdict

from ukbmm.biobank.dictionary import Dictionary
from ukbmm.data.events import EventBlock
from ukbmm.models.longitudinal import EventEncoder

INDEX = np.datetime64("2008-06-01")
OVER_PANDAS, FULL, BATCH_LIMIT, PACKED, BYTES = 3.0, 0.9, 6.0, 1.5, 5.5  # Targets


class RecordBiobank(MemoryBiobank):
    "A Biobank of three columns in memory, with records in a folder."

    dictionary = Dictionary.builtin()

    def __init__(self, folder: Path, participants: int):
        columns = {"p34": pl.Series([1945 + i % 20 for i in range(participants)]),
                   "p52": pl.Series([1 + i % 12 for i in range(participants)]),
                   "p53_i0": pl.Series(np.full(participants, INDEX)).cast(pl.Date)}  # fmt: skip
        super().__init__(columns, {name: self.dictionary[int(name[1:3])] for name in columns})
        self.folder = folder
        self.manifest["records"] = {"hesin": {}, "hesin_diag": {}}

    def records(self, name: str) -> pl.LazyFrame:
        return pl.scan_parquet(self.folder / f"{name}.parquet")

    def read(self, columns: list[str], rows: np.ndarray | None = None) -> pl.DataFrame:
        return pl.DataFrame([self.series[name].rename(name) for name in columns])


def write_records(folder: Path, participants: int, each: float) -> int:
    "Write stays in hospital and their diagnoses, very many for a few people; returns the diagnoses."
    rng = np.random.default_rng(0)
    stays = rng.negative_binomial(0.8, 0.8 / (0.8 + each / 3), participants)
    row = np.repeat(np.arange(participants, dtype=np.int32), stays)
    number = (np.arange(len(row)) - np.repeat(np.cumsum(stays) - stays, stays)).astype(np.int32)
    day = pl.Series(INDEX - rng.integers(-2000, 6000, len(row)).astype("timedelta64[D]")).cast(pl.Date)
    none = pl.Series([None], dtype=pl.Date).new_from_index(0, len(row))
    dates = {"epistart": day, "admidate": none, "epiend": none, "disdate": none}
    pl.DataFrame({"row": row, "ins_index": number, **dates}).write_parquet(
        folder / "hesin.parquet", row_group_size=250_000
    )
    times = rng.integers(1, 6, len(row))
    codes = [f"{letter}{i:03}" for letter in "ABCDEFGHIJKLMN" for i in range(1000)]
    rank = np.minimum(rng.zipf(1.3, int(times.sum())), len(codes)) - 1
    chosen = pl.Series(codes).gather(np.random.default_rng(1).permutation(len(codes))[rank])
    order = np.arange(len(rank)) - np.repeat(np.cumsum(times) - times, times)
    diagnoses = {"row": np.repeat(row, times), "ins_index": np.repeat(number, times), "arr_index": order.astype(np.int32),
                 "level": np.where(order == 0, 1, 2).astype(np.int32), "diag_icd9": pl.Series([None], dtype=pl.String).new_from_index(0, len(rank)), "diag_icd10": chosen}  # fmt: skip
    pl.DataFrame(diagnoses).write_parquet(folder / "hesin_diag.parquet", row_group_size=250_000)
    return len(rank)


def in_pandas(folder: Path, length: int) -> pd.DataFrame:
    "The latest events of everybody before the index date, by hand."
    stays, diagnoses = (pd.read_parquet(folder / f"{name}.parquet") for name in ("hesin", "hesin_diag"))
    both = diagnoses.merge(stays[["row", "ins_index", "epistart"]], on=["row", "ins_index"])
    both["days"] = (pd.Timestamp(INDEX) - pd.to_datetime(both["epistart"])).dt.days
    both = both[both["days"] > 0].drop_duplicates(["row", "days", "diag_icd10"])
    both = both.sort_values(["row", "days", "diag_icd10"], ascending=[True, False, True])
    return both.groupby("row").tail(length)


def check(block: EventBlock, expected: pd.DataFrame) -> None:
    "Stop unless the histories are those that pandas makes."
    histories, codes = block._histories, block.hierarchy.codes["code"].to_numpy()
    np.testing.assert_array_equal(
        histories.offsets.diff().numpy(), np.bincount(expected["row"], minlength=len(histories.offsets) - 1)
    )
    np.testing.assert_array_equal(histories.days.numpy(), expected["days"])
    np.testing.assert_array_equal(codes[histories.codes.numpy()], expected["diag_icd10"])


def peak_bytes() -> int:
    "The most memory that this process has held."
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def read_apart(folder: Path, participants: int) -> dict[str, float]:
    "Read the histories in another process, to see what that takes of memory."
    command = [sys.executable, __file__, "read", str(folder), str(participants)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def read(folder: str, participants: str) -> None:
    "Read histories and print the highest memory before and after."
    biobank, before = RecordBiobank(Path(folder), int(participants)), peak_bytes()
    block = EventBlock(["diagnoses"]).open(biobank)
    kept = sum(part.numel() * part.element_size() for part in block._histories)
    print(
        json.dumps(
            {"before": before, "peak": peak_bytes(), "kept": kept, "events": len(block._histories.codes)}
        )
    )


def epoch(block: EventBlock, batches: list[torch.Tensor]) -> Callable[[], None]:
    "Go through all batches as a loader does."
    return lambda: [block.transform(block.batch(rows)) for rows in batches] and None


def rectangle(block: EventBlock) -> torch.Tensor:
    "Everybody's tokens, days and sources as wide as the longest: int16 [participant, 3, time]."
    raw = block.batch(torch.arange(len(block._histories.offsets) - 1))
    there = torch.arange(len(raw.steps) - 1) < raw.lengths[:, None]
    parts = [
        torch.zeros(there.shape, dtype=torch.int16).masked_scatter(there, part.to(torch.int16))
        for part in raw[:3]
    ]
    return torch.stack(parts, dim=1)


def step(encoder: EventEncoder, x: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    "Forward and backward of one batch."
    return lambda: encoder(x, encoder.additive(x)).square().sum().backward()


def main() -> None:
    options = arguments(__doc__)
    participants, each = (2_000, 20.0) if options.quick else (50_000, 120.0)
    repeats = options.repeats or (1 if options.quick else 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write_records(folder, participants, each)
        biobank = RecordBiobank(folder, participants)
        print(f"{participants:,} participants, {written:,} diagnoses")
        print_versions("polars", "pandas")
        reading(biobank, folder, participants, repeats, options.clock)
        block = EventBlock(["diagnoses"]).fit(biobank, np.arange(participants * 4 // 5))
        batches(block, participants, repeats, options.clock)
        packing(block, participants, repeats, options.clock)


def reading(biobank: RecordBiobank, folder: Path, participants: int, repeats: int, clock: str) -> None:
    "Print how long it takes to read histories, and how much memory."
    check(EventBlock(["diagnoses"]).open(biobank), in_pandas(folder, 128))
    calls = {"ours": lambda: EventBlock(["diagnoses"]).open(biobank), "pandas": lambda: in_pandas(folder, 128),
             "limit": lambda: [pl.read_parquet(folder / f"{name}.parquet") for name in ("hesin", "hesin_diag")]}  # fmt: skip
    taken, memory = seconds(calls, repeats, clock), read_apart(folder, participants)
    over, weight = ratio(taken["pandas"], taken["ours"]), memory["kept"] / max(1, memory["events"])
    names = {"ours": "ours: EventBlock.open", "pandas": "peer: pandas", "limit": "limit: reading the files"}
    rows = [
        [names[way], f"{statistics.median(times):.2f}", f"{ratio(times, taken['ours']):.2f}", ""]
        for way, times in taken.items()
    ]
    rows[0][3] = f"{verdict(over >= OVER_PANDAS)} (pandas takes >= {OVER_PANDAS:g})"
    print_table(["reading", "s", "time / ours", "target"], rows)
    grown = (memory["peak"] - memory["before"]) / max(1, memory["events"])
    target = f"{verdict(weight <= BYTES)} (<= {BYTES})"
    print_table(["memory", "events kept", "bytes an event kept", "at most while reading", "target"],
                [["histories", f"{memory['events']:,}", f"{weight:.2f}", f"{grown:.0f}", target]])  # fmt: skip


def batches(block: EventBlock, participants: int, repeats: int, clock: str) -> None:
    "Print how fast batches are, against a gather from a rectangle."
    table, rows = rectangle(block), []
    kept = sum(part.numel() * part.element_size() for part in block._histories)
    order = torch.randperm(participants, generator=torch.Generator().manual_seed(0))
    for bs in (1024, 256):
        parts = list(order.split(bs))
        limit = lambda parts=parts: [table.index_select(0, part).long() for part in parts] and None  # noqa: E731
        taken = seconds({"ours": epoch(block, parts), "limit": limit}, repeats, clock)
        times = ratio(taken["ours"], taken["limit"])
        speed = [f"{participants / statistics.median(taken[way]):,.0f}" for way in ("ours", "limit")]
        rows.append(
            [
                f"{bs:,}",
                *speed,
                f"{times:.2f}",
                f"{table.numel() * 2 / kept:.1f}",
                f"{verdict(times <= BATCH_LIMIT)} (time <= {BATCH_LIMIT:g})",
            ]
        )
    header = [
        "batch size",
        "ours, samples/s",
        "limit: rectangle",
        "time / limit",
        "memory, rectangle / ours",
        "target",
    ]
    print_table(header, rows)


def packing(block: EventBlock, participants: int, repeats: int, clock: str) -> None:
    "Print how full lanes are, and what a training step takes with and without them."
    encoder, rows = EventEncoder.of(block, 32, 1), []
    for bs in (256, 64):
        some = torch.randperm(participants, generator=torch.Generator().manual_seed(1))[:bs]
        tokens, times, sources, lanes = block.transform(block.batch(some))
        apart = torch.eye(len(some), dtype=torch.bool)
        full = [float((tokens > 0).sum()) / (tokens.shape[1] * size) for size in (lanes.shape[1], len(some))]
        calls = {
            "lanes": step(encoder, (tokens, times, sources, lanes)),
            "rectangle": step(encoder, (tokens, times, sources, apart)),
        }
        taken = seconds(calls, repeats, clock)
        gain = ratio(taken["rectangle"], taken["lanes"])
        target = f"{verdict(full[0] >= FULL and gain >= PACKED)} (full >= {FULL}, {PACKED:g} times as fast)"
        shares = [f"{100 * share:.0f}%" for share in full]
        rows.append(
            [f"{bs:,}", *shares, f"{1000 * statistics.median(taken['lanes']):.0f}", f"{gain:.1f}", target]
        )
    print_table(
        ["batch size", "lanes full", "rectangle full", "step in lanes, ms", "rectangle / lanes", "target"],
        rows,
    )


if __name__ == "__main__":
    read(*sys.argv[2:]) if sys.argv[1:2] == ["read"] else main()
