"""Build the labels of codings that ship with ukbmm from the public showcase, as the project tofu has it.

    curl -LO https://github.com/spiros/tofu/raw/master/lookups/encodings.csv.gz
    python scripts/build_codings.py encodings.csv.gz

Writes ukbmm/biobank/schema/codings.parquet: coding, value, meaning. Codes that no participant can have (headings of a
tree) are left out; so are classifications that are not UK Biobank's own and may not be passed on without a licence.
tofu is under the MIT licence, Spiros Denaxas; see NOTICE. It has no coding of dates and times: those stand below.
"""

import sys
from pathlib import Path

import polars as pl

SCHEMA = Path(__file__).parent.parent / "ukbmm" / "biobank" / "schema"
NOT_OURS = {
    **dict.fromkeys((19, 87, 1836), "ICD, World Health Organization"),
    **dict.fromkeys((240, 259), "OPCS, Crown copyright"),
    **dict.fromkeys((1834, 1835), "Read codes, NHS"),
    **dict.fromkeys((2, 123, 497), "Standard Occupational Classification, Crown copyright"),
    609: "cross map to ICD-10",
}
# Special dates and times of the showcase's codings 272 to 1642 (biobank.ndph.ox.ac.uk/showcase/coding.cgi?id=819 and so on), 21 labels,
# typed from public quotations: those of 272, 439, 586, 819 and 1313 from scripts of analyses, the nine others as the R package ukbrapR
# lists them (facts alone; nothing of the package is used). Each coding has as many codes as the showcase's encoding.txt says.
FUTURE = "Code has event date in the future and is presumed to be a place-holder or other system default"
SPECIAL_DATES = {
    272: {"1900-01-01": "Date is unknown"},
    439: {"1900-01-01 00:00:00": "Not performed"},
    586: {
        "1910-01-01": "Prefer not to answer",
        "1920-01-01": "Do not know",
        "1930-01-01": "Not applicable",
    },
    691: {"1910-01-01": "Prefer not to answer", "1920-01-01": "Do not know"},
    819: {
        "1900-01-01": "Code has no event date",
        "1901-01-01": "Code has event date before participant's date of birth",
        "1902-02-02": "Code has event date matching participant's date of birth",
        "1903-03-03": "Code has event date after participant's date of birth and falls in the same calendar year as date of birth",
        "1909-09-09": FUTURE,
        "2037-07-07": FUTURE,
    },
    1273: {"1900-01-01": "Date is unknown", "1999-01-01": "Date is invalid"},
    1313: {"1904-04-04": "Date in or before calendar year of birth"},
    1345: {"1902-01-01": "before kit despatched", "1900-01-01": "after test sample received by laboratory"},
    1439: {"1900-01-01 00:00:00": "Time is unknown", "1999-01-01 00:00:00": "Time is invalid"},
    1642: {"1999-01-01": "Data returned via post"},
}


def special_dates() -> pl.DataFrame:
    "The labels of the codings of dates and times."
    rows = [(coding, code, label) for coding, codes in SPECIAL_DATES.items() for code, label in codes.items()]
    types = {"coding": pl.Int32, "value": pl.String, "meaning": pl.String}
    return pl.DataFrame(rows, schema=types, orient="row")


def main(path: str) -> None:
    types = {"encoding_id": pl.Int32, "selectable": pl.Float64}
    table = pl.read_csv(path, infer_schema=False).cast(types)
    kept = table.filter(
        (pl.col("selectable").fill_null(1) != 0) & ~pl.col("encoding_id").is_in(list(NOT_OURS)),
        pl.col("value").is_not_null() & pl.col("meaning").is_not_null(),
    )
    codings = kept.select(
        pl.col("encoding_id").alias("coding"), "value", pl.col("meaning").str.strip_chars()
    ).unique(["coding", "value"], keep="first", maintain_order=True)
    codings = pl.concat([codings, special_dates()]).sort("coding", maintain_order=True)
    codings.write_parquet(SCHEMA / "codings.parquet", compression="zstd", compression_level=19)
    print(f"{codings['coding'].n_unique()} codings, {codings.height:,} labels")


if __name__ == "__main__":
    main(sys.argv[1])
