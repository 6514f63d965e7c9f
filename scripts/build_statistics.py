"""Build the means and standard deviations that the synthetic biobank aims at, as the project tofu took them from the showcase.

    curl -LO https://github.com/spiros/tofu/raw/master/lookups/df_showcase_desc_stats.csv.gz
    python scripts/build_statistics.py df_showcase_desc_stats.csv.gz

Writes ukbmm/biobank/schema/statistics.tsv: field_id, mean, sd, for the fields of synthetic_plan.tsv, which is kept by hand.
tofu is under the MIT licence, Spiros Denaxas; see NOTICE. They are published summaries over hundreds of thousands of people.
"""

import sys
from pathlib import Path

import polars as pl

SCHEMA = Path(__file__).parent.parent / "ukbmm" / "biobank" / "schema"


def main(path: str) -> None:
    types = {"field_id": pl.Int32, "mean": pl.Float64, "sd": pl.Float64}
    table = pl.read_csv(path).select(pl.col(name).cast(dtype) for name, dtype in types.items())
    planned = pl.read_csv(SCHEMA / "synthetic_plan.tsv", separator="\t", quote_char=None)["field_id"]
    kept = table.filter(pl.col("field_id").is_in(planned.implode())).unique("field_id").sort("field_id")
    kept.write_csv(SCHEMA / "statistics.tsv", separator="\t")
    print(f"{kept.height} of {planned.n_unique()} planned fields have a mean")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
