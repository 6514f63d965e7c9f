"""What ukbmm and FUNPACK 4.0.1 (with its fmrib rules) make of the same synthetic extract: every value compared, every difference listed by code.

    python benchmarks/funpack.py --peers /path/to/a/python/with/fmrib-unpack

FUNPACK's processing step (fitted on all rows) is left out; its cleaning and recoding are what is compared.
"""

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl

from ukbmm.biobank.store import Biobank, ingest
from ukbmm.biobank.synthetic import write_extract

SHOWN = 6  # Differences listed for a field


def unpack(source: Path, out: Path, peers: str) -> pl.DataFrame:
    "Have FUNPACK clean an extract; its table as text."
    command = [
        Path(peers).parent / "fmrib_unpack",
        "-q",
        "-ow",
        "-nd",
        "-cfg",
        "fmrib",
        "-sp",
        "-nj",
        "1",
        out,
        source,
    ]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return pl.read_csv(out, separator="\t", infer_schema=False).sort(pl.col("eid").cast(pl.Int64))


def decimal_year(column: pl.Series) -> pl.Series:
    "Dates as FUNPACK's fmrib rules write them: 1 July 2010 is 2010.4959."
    when, name = column.cast(pl.Datetime("us")).to_frame("when"), pl.col("when")
    start = pl.datetime(name.dt.year(), 1, 1)
    length = pl.datetime(name.dt.year() + 1, 1, 1) - start
    return when.select(
        name.dt.year() + (name - start).dt.total_seconds() / length.dt.total_seconds()
    ).to_series()


def comparable(column: pl.Series) -> pl.Series:
    "Values as numbers where they are numbers, else as text."
    if column.dtype.is_temporal():
        return decimal_year(column)
    if column.dtype == pl.String:
        number = column.cast(pl.Float64, strict=False)
        return number if number.null_count() == column.null_count() else column
    return column.cast(pl.Float64)


def joined(column: pl.Series) -> pl.Series:
    "A list as one text."
    return (
        column.list.eval(pl.element().cast(pl.String)).list.join("|")
        if isinstance(column.dtype, pl.List)
        else column
    )


def theirs_of(table: pl.DataFrame, name: str, several: bool) -> pl.Series | None:
    "FUNPACK's column of a canonical name; the positions of a multiple choice joined."
    field, *rest = name[1:].split("_")
    parts = {part[0]: part[1:] for part in rest}
    instance, array = parts.get("i", "0"), parts.get("a")
    if not several:
        return table.get_column(f"{field}-{instance}.{array or 0}", default=None)
    positions = [column for column in table.columns if column.startswith(f"{field}-{instance}.")]
    whole = [pl.col(column).str.replace(r"\.0$", "") for column in positions]
    if not positions:
        return None
    text = table.select(pl.concat_str(whole, separator="|", ignore_nulls=True)).to_series()
    return pl.select(pl.when(text != "").then(text)).to_series()


def differences(biobank: Biobank, table: pl.DataFrame, name: str) -> Counter | None:
    "What differs in a column: raw value, ours, theirs; None where FUNPACK has no such column."
    theirs = theirs_of(table, name, biobank.field(name).value_type == "categorical_multiple")
    if theirs is None:
        return None
    raw, ours = joined(biobank.read([name])[name]), joined(biobank.clean([name])[name].values)
    frame = pl.DataFrame({"raw": raw.cast(pl.String), "ours": ours, "theirs": theirs})
    numbers = frame["ours"].dtype.is_numeric() or frame["ours"].dtype.is_temporal()
    frame = frame.with_columns(ours=comparable(ours), theirs=comparable(theirs)) if numbers else frame
    same = pl.col("ours").cast(pl.String).eq_missing(pl.col("theirs").cast(pl.String))
    if frame["ours"].dtype.is_numeric() and frame["theirs"].dtype.is_numeric():
        close = (pl.col("ours") - pl.col("theirs")).abs() <= 1e-6 * pl.col("ours").abs().clip(1)
        same = close.fill_null(False) | (pl.col("ours").is_null() & pl.col("theirs").is_null())
    return Counter(frame.filter(~same).select(pl.all().cast(pl.String)).iter_rows())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", required=True, help="a Python with fmrib-unpack")
    parser.add_argument("--participants", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_extract(Path(folder) / "extract", options.participants, columns=None)
        source = next((Path(folder) / "extract").glob("ukb*.csv"))
        biobank = ingest(source, Path(folder) / "biobank")
        table = unpack(source, Path(folder) / "funpack.tsv", options.peers)
        report(biobank, table)


def report(biobank: Biobank, table: pl.DataFrame) -> None:
    "Print what differs, by coding and code."
    found, equal, absent = {}, 0, []
    for name in biobank.columns:
        differ = differences(biobank, table, name)
        if differ is None:
            absent += [name] * (biobank.read([name])[name].null_count() < len(biobank))
        elif not differ:
            equal += 1
        else:
            field = biobank.field(name)
            found.setdefault((field.coding or 0, field.field_id, field.title), Counter()).update(differ)
    print(
        f"{equal:,} columns are the same, {len(absent)} with values FUNPACK does not have, {len(found)} fields differ"
    )
    for (coding, field_id, title), differ in sorted(found.items()):
        print(f"\ncoding {coding}, field {field_id} {title}")
        for (raw, ours, theirs), n in differ.most_common(SHOWN):
            print(
                f"    {raw!s:>24} -> {ours!s:>20} here, {theirs!s:>20} there"
                + (f" ({n} times)" if n >= 5 else "")
            )


if __name__ == "__main__":
    main()
