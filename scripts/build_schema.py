"""Build the data dictionary that ships with ukbmm from the public schema in the package fmrib-unpack.

    pip download --no-deps fmrib-unpack==4.0.1 fmrib-unpack-fmrib-config==1.8.0 -d wheels
    python scripts/build_schema.py wheels

Writes ukbmm/biobank/schema/fields.parquet (one row for each field of the UK Biobank showcase) and
ukbmm/biobank/schema/special_values.tsv (what the special values of each coding mean).
Both packages are Apache-2.0, University of Oxford; see NOTICE.
"""

import io
import sys
import zipfile
from pathlib import Path

import polars as pl

SCHEMA = Path(__file__).parent.parent / "ukbmm" / "biobank" / "schema"
FIELD_COLUMNS = {
    "field_id": pl.Int32,
    "title": pl.String,
    "availability": pl.Int8,
    "stability": pl.Int8,
    "private": pl.Int8,
    "value_type": pl.Int8,
    "base_type": pl.Int8,
    "item_type": pl.Int8,
    "strata": pl.Int8,
    "instanced": pl.Int8,
    "arrayed": pl.Int8,
    "sexed": pl.Int8,
    "units": pl.String,
    "main_category": pl.Int32,
    "encoding_id": pl.Int32,
    "instance_id": pl.Int32,
    "instance_min": pl.Int32,
    "instance_max": pl.Int32,
    "array_min": pl.Int32,
    "array_max": pl.Int32,
    "debut": pl.String,
    "version": pl.String,
    "num_participants": pl.Int32,
}
# What the usual special values mean. FUNPACK's table says that a value is missing, the showcase's labels say why.
USUAL_KIND = {
    **dict.fromkeys(("-1", "-121", "-11", "-21"), "do_not_know"),
    **dict.fromkeys(("-3", "-818", "-819", "-13", "-23"), "prefer_not_to_answer"),
    "-313": "not_applicable",
}
OTHER_KIND = {  # by (coding, value), from the labels of the showcase, where they say otherwise
    **{(coding, "-1"): "not_measured" for coding in ("17", "170", "485", "100696")},
    **{(coding, "-1"): "not_asked" for coding in ("100259", "100261")},
    ("682", "-1"): "not_applicable",
    ("100306", "-2"): "not_applicable",  # never went to school
    ("100398", "-2"): "not_applicable",  # does not drink hot drinks
    ("100617", "-2"): "not_applicable",
    ("100479", "7"): "not_applicable",  # is not employed
    ("100338", "3"): "not_applicable",  # did not use a mobile phone two years ago
    ("100664", "3"): "not_applicable",  # did not use a mobile phone one year ago
    ("7310", "-906"): "do_not_know",
    ("100586", "-4"): "do_not_know",
    ("100599", "-5"): "do_not_know",
    ("100008", "222"): "do_not_know",
    **{(coding, value): "do_not_know" for coding, value in [("218", "99"), ("222", "99"), ("214", "9999")]},
    **{("221", value): "do_not_know" for value in ("9", "X")},
    ("100279", "0"): "do_not_know",
}
ADDED = [
    (21, "-1", "do_not_know")
]  # special values that FUNPACK does not list, from the labels of the showcase
NOT_MISSING = {("100305", "-7"), ("100658", "-7")}  # "none of the above" is an answer
NUMBERS = {"-10": 0.5, "-1001": 0.5}  # "less than one": a number, not a missing value


def member(wheels: Path, package: str, path: str) -> io.BytesIO:
    "Read one file out of a wheel."
    wheel = next(wheels.glob(f"{package}-*.whl"))
    return io.BytesIO(zipfile.ZipFile(wheel).read(path))


def build_fields(wheels: Path) -> pl.DataFrame:
    "The fields of the schema, without the long notes."
    table = pl.read_csv(
        member(wheels, "fmrib_unpack", "funpack/schema/field.txt"),
        separator="\t",
        quote_char=None,
        infer_schema=False,
    )
    columns = [pl.col(name).cast(dtype) for name, dtype in FIELD_COLUMNS.items()]
    return table.select(columns).with_columns(
        pl.col("debut", "version").str.slice(0, 10), pl.col("units").replace("", None)
    )


def is_number(value: str) -> bool:
    return value.lstrip("-").replace(".", "", 1).isdigit()


def build_special_values(wheels: Path) -> pl.DataFrame:
    "One row for each special value: its coding, its kind, and its number where it stands for one."
    package, folder = "fmrib_unpack", "funpack/configs/fmrib"
    if not any(wheels.glob("fmrib_unpack_fmrib_config-*.whl")):
        raise SystemExit("fmrib-unpack-fmrib-config is needed too")
    package = "fmrib_unpack_fmrib_config"
    missing = pl.read_csv(
        member(wheels, package, f"{folder}/datacodings_navalues.tsv"), separator="\t", infer_schema=False
    )
    recoded = pl.read_csv(
        member(wheels, package, f"{folder}/datacodings_recoding.tsv"), separator="\t", infer_schema=False
    )
    rows = []
    for coding, values in missing.iter_rows():
        for value in values.split(","):
            if (coding, value) in NOT_MISSING or value.count("-") > 1:
                continue  # dates are not numbers to be cleaned: their meanings differ by coding
            kind = OTHER_KIND.get((coding, value)) or USUAL_KIND.get(value, "not_measured")
            rows.append((int(coding), value, kind, None, "FUNPACK datacodings_navalues"))
    for coding, raw, new in recoded.select("ID", "RawLevels", "NewLevels").iter_rows():
        for value, number in zip(raw.split(","), new.split(","), strict=False):
            if value in NUMBERS and number == "0.5":
                rows.append((int(coding), value, "number", 0.5, "FUNPACK datacodings_recoding"))
    rows += [(coding, value, kind, None, "showcase label") for coding, value, kind in ADDED]
    names = {
        "coding": pl.Int32,
        "value": pl.String,
        "kind": pl.String,
        "number": pl.Float64,
        "source": pl.String,
    }
    return pl.DataFrame(rows, schema=names, orient="row").unique().sort("coding", "value")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    wheels = Path(sys.argv[1])
    SCHEMA.mkdir(parents=True, exist_ok=True)
    fields = build_fields(wheels)
    fields.write_parquet(SCHEMA / "fields.parquet", compression="zstd", compression_level=19)
    special = build_special_values(wheels)
    special.write_csv(SCHEMA / "special_values.tsv", separator="\t")
    print(f"{len(fields):,} fields, {len(special):,} special values")
