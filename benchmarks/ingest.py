"""A text extract to a typed, cleaned store: ours, polars, duckdb, pandas and FUNPACK, each in a process of its own.

Everybody reads the same file of real fields with the types that the dictionary gives, and writes parquet (FUNPACK: its tab-separated text).
Ours also checks every line and every identifier, joins multiple choices, writes checksums, and reads all columns back cleaned.
duckdb and FUNPACK are looked for in the Python given with --peers; without it they are left out.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

OVER_POLARS, OVER_FUNPACK, MEMORY_GIB, BACK = 1.5, 10, 2, 1.5  # Targets
SHARES = {"integer": 0.25, "categorical_single": 0.3, "continuous": 0.3, "categorical_multiple": 0.07, "date": 0.05, "text": 0.03}  # fmt: skip
MISSING = 0.61
AT_ONCE = 10_000_000  # Values drawn at a time


def mixed_columns(n_columns: int) -> list[tuple[str, object]]:
    "Real fields in the shares of a real extract: names as ukbconv writes them, with their fields."
    from ukbmm.biobank.dictionary import Dictionary

    fields, chosen = Dictionary.builtin().fields.values(), []
    for value_type, share in SHARES.items():
        of_type = [
            field for field in fields if field.value_type == value_type and field.instance_id in (0, 2)
        ]
        names: list[tuple[str, object]] = []
        for field in of_type:
            positions = min(field.array_max, 5) + 1 if field.arrayed else 1
            if value_type == "categorical_multiple" and positions == 1:
                continue  # FUNPACK takes a multiple choice in one column for a joined one, and fails on codes
            for instance in range(field.instance_max + 1 if field.instanced else 1):
                if len(names) < share * n_columns:
                    names += [(f"{field.field_id}-{instance}.{array}", field) for array in range(positions)]
        chosen += names
    return chosen


def draw(field, n: int, rng: np.random.Generator) -> pl.Series:
    "Values of a field as text, most of them missing."
    if field.value_type == "integer":
        values = pl.Series(rng.poisson(30, n))
    elif field.value_type == "continuous":
        values = pl.Series(np.round(rng.normal(10, 3, n), 3))
    elif field.value_type == "date":
        values = pl.Series(np.datetime64("2006-01-01") + rng.integers(0, 4000, n)).cast(pl.Date)
    elif field.value_type == "text":
        values = "well " + pl.Series(rng.integers(0, 1_000_000, n)).cast(pl.String)
    elif field.text_codes:
        values = pl.Series(np.array(["I10", "E119", "I251", "K573", "C509"])[rng.integers(0, 5, n)])
    else:
        values = pl.Series(rng.integers(0, 5, n))
    return pl.select(pl.when(pl.Series(rng.random(n) >= MISSING)).then(values.cast(pl.String))).to_series()


def write_extract(path: Path, rows: int, n_columns: int) -> list[str]:
    "Write a csv extract in pieces; returns its column names."
    rng, columns = np.random.default_rng(0), mixed_columns(n_columns)
    eids = np.sort(rng.choice(np.arange(1_000_000, 6_000_000), rows, replace=False))
    step = max(1, AT_ONCE // n_columns)
    with path.open("wb") as stream:
        for start in range(0, rows, step):
            some = eids[start : start + step]
            table = {"eid": pl.Series(some).cast(pl.String)}
            table |= {name: draw(field, len(some), rng) for name, field in columns}
            pl.DataFrame(table).write_csv(stream, include_header=start == 0)
    return [name for name, _ in columns]


def types_of(path: Path) -> dict[str, pl.DataType]:
    "The type of each column of an extract."
    from ukbmm.biobank.dictionary import Dictionary

    with path.open() as stream:
        names = stream.readline().strip().replace('"', "").split(",")
    fields = Dictionary.builtin().fields
    return {name: pl.Int64 if name == "eid" else fields[int(name.split("-")[0])].dtype for name in names}


def run_ours(source: Path, out: Path) -> None:
    from ukbmm.biobank.store import ingest

    biobank = ingest(source, out)
    for start in range(0, len(biobank.columns), 200):
        biobank.clean(biobank.columns[start : start + 200])


def run_polars(source: Path, out: Path) -> None:
    frame = pl.scan_csv(source, schema=types_of(source), null_values=["", "NA"])
    frame.sink_parquet(out, compression="zstd", row_group_size=10_000)


def run_pandas(source: Path, out: Path) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        pl.Int64: "Int64",
        pl.Int32: "Int32",
        pl.Float64: "float64",
        pl.String: "string",
        pl.Date: "string",
    }
    types, writer = {name: kinds[dtype] for name, dtype in types_of(source).items()}, None
    for chunk in pd.read_csv(source, dtype=types, chunksize=10_000):
        table = pa.Table.from_pandas(chunk, preserve_index=False)
        writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()


DUCKDB = """
import duckdb, json, sys
source, out, types = sys.argv[1], sys.argv[2], json.loads(open(sys.argv[3]).read())
duckdb.sql(f"copy (select * from read_csv('{source}', header=true, delim=',', nullstr=['', 'NA'], columns={types})) to '{out}' (format parquet, compression zstd)")
"""
SQL = {"Int64": "BIGINT", "Int32": "INTEGER", "Float64": "DOUBLE", "String": "VARCHAR", "Date": "DATE", "Datetime": "TIMESTAMP"}  # fmt: skip


def command_of(engine: str, source: Path, out: Path, peers: str | None) -> list[str]:
    "The command that has an engine read a file."
    if engine == "duckdb":
        types = out.with_suffix(".json")
        types.write_text(
            json.dumps({name: SQL[str(dtype.base_type())] for name, dtype in types_of(source).items()})
        )
        return [peers, "-c", DUCKDB, str(source), str(out), str(types)]
    if engine == "FUNPACK":
        funpack = str(Path(peers).parent / "fmrib_unpack")
        return [
            funpack,
            "-q",
            "-ow",
            "-nd",
            "-cfg",
            "fmrib",
            "-sp",
            "-nj",
            str(os.cpu_count()),
            str(out),
            str(source),
        ]
    return [sys.executable, __file__, "one", engine, str(source), str(out)]


def measure(engine: str, source: Path, folder: Path, peers: str | None) -> dict[str, float]:
    "Have an engine read a file in a process of its own: seconds, processor seconds, highest memory in GiB."
    out = folder / f"{engine}-out"
    command = command_of(engine, source, out, peers)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    if status:
        sys.exit(f"{engine} failed: {process.stderr.read().decode()[-2000:]}")
    return {"wall": taken, "cpu": usage.ru_utime + usage.ru_stime, "gib": usage.ru_maxrss / 2**20}


def clear(folder: Path) -> None:
    "Remove what engines wrote."
    for path in folder.glob("*-out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def compare(
    rows: int, n_columns: int, engines: list[str], repeats: int, peers: str | None, folder: Path
) -> dict:
    "Rounds of every engine in turn on one file; the slowest once."
    source, found = folder / "extract.csv", {engine: [] for engine in engines}
    write_extract(source, rows, n_columns)
    for round_ in range(repeats):
        for engine in engines[:: -1 if round_ % 2 else 1]:
            if engine == "FUNPACK" and round_:
                continue
            clear(folder)
            found[engine].append(measure(engine, source, folder, peers))
    return found


def read_back(rows: int, n_columns: int, folder: Path, repeats: int) -> tuple[float, float]:
    "Median seconds to read 50 columns of everybody: ours, and polars from the file that it wrote itself."
    from ukbmm.biobank.names import parse_name
    from ukbmm.biobank.store import Biobank

    source = folder / "extract.csv"
    clear(folder)
    run_ours(source, folder / "ours-out")
    run_polars(source, folder / "polars-out")
    biobank = Biobank.open(folder / "ours-out")
    single = [name for name in biobank.columns if biobank.field(name).value_type != "categorical_multiple"]
    names = single[:: max(1, len(single) // 50)][:50]
    parsed = [parse_name(name)[0] for name in names]
    theirs = [f"{column.field_id}-{column.instance or 0}.{column.array or 0}" for column in parsed]
    calls = {
        "ours": lambda: biobank.read(names),
        "polars": lambda: pl.read_parquet(folder / "polars-out", columns=theirs),
    }
    taken = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return tuple(float(np.median(taken[name][1:])) for name in calls)


def print_rows(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def report(found: dict, rows: int, n_columns: int, clock: str) -> None:
    "Print a table of engines, each with its ratio to ours."
    median = {
        engine: {key: float(np.median([run[key] for run in runs])) for key in ("wall", "cpu", "gib")}
        for engine, runs in found.items()
    }
    ours = [run[clock] for run in found["ours"]]
    table = []
    for engine, values in median.items():
        theirs = [run[clock] for run in found[engine]]
        over = float(np.median([a / b for a, b in zip(ours, theirs, strict=False)]))
        table.append(
            [engine, f"{values['wall']:.1f}", f"{values['cpu']:.1f}", f"{values['gib']:.2f}", f"{over:.2f}"]
        )
    print(f"{rows:,} participants x {n_columns:,} columns; seconds of {clock} time compared")
    print_rows(["engine", "wall, s", "cpu, s", "peak, GiB", "ours / engine"], table)
    ratio = {engine: float(row[4]) for engine, row in zip(median, table, strict=True)}
    holds = {f"ours at most {OVER_POLARS} times polars": ratio["polars"] <= OVER_POLARS,
             f"our peak memory below {MEMORY_GIB} GiB": median["ours"]["gib"] < MEMORY_GIB}  # fmt: skip
    if "FUNPACK" in ratio:
        holds[f"at least {OVER_FUNPACK} times faster than FUNPACK"] = ratio["FUNPACK"] <= 1 / OVER_FUNPACK
    for what, so in holds.items():
        print(f"{what}: {'holds' if so else 'MISSED'}")
    print(flush=True)


def grow(folder: Path, out: Path, sizes: list[tuple[int, int]]) -> None:
    "Time and memory of ours and polars over sizes, appended to a table for the plot in the documentation."
    lines = ["rows\tcolumns\tengine\twall\tcpu\tgib"]
    for rows, n_columns in sizes:
        found = compare(rows, n_columns, ["ours", "polars"], 1, None, folder)
        for engine, (run,) in found.items():
            lines.append(
                f"{rows}\t{n_columns}\t{engine}\t{run['wall']:.2f}\t{run['cpu']:.2f}\t{run['gib']:.3f}"
            )
            print(lines[-1], flush=True)
        out.write_text("\n".join(lines) + "\n")


SIZES = [(10_000, 1_000), (50_000, 1_000), (100_000, 1_000), (250_000, 1_000), (500_000, 1_000),
         (20_000, 500), (20_000, 2_500), (20_000, 10_000), (20_000, 25_000)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a small size, to see that it works; not to be quoted"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the engines")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu leaves out what other programs take"
    )
    parser.add_argument("--peers", help="a Python with duckdb and fmrib-unpack")
    parser.add_argument(
        "--grow", type=Path, help="write time and memory by size to this table instead; takes an hour"
    )
    options = parser.parse_args()
    rows, n_columns = (2_000, 200) if options.quick else (100_000, 1_000)
    engines = ["ours", "polars", "pandas"] + (["duckdb", "FUNPACK"] if options.peers else [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.grow:
            sizes = [(1_000, 100), (2_000, 100), (1_000, 300)] if options.quick else SIZES
            grow(folder, options.grow, sizes)
            return
        report(
            compare(rows, n_columns, engines, options.repeats, options.peers, folder),
            rows,
            n_columns,
            options.clock,
        )
        ours, polars = read_back(rows, n_columns, folder, max(5, options.repeats))
        print(f"50 columns of everybody: ours {ours:.3f} s, polars {polars:.3f} s, ours / polars {ours / polars:.2f}: "
              f"{'holds' if ours <= BACK * polars else 'MISSED'} (<= {BACK})")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        {"ours": run_ours, "polars": run_polars, "pandas": run_pandas}[sys.argv[2]](
            Path(sys.argv[3]), Path(sys.argv[4])
        )
    else:
        main()
