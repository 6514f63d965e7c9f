"""Build the table of questions that follow from an earlier answer.

    pip download --no-deps fmrib-unpack-fmrib-config==1.8.0 -d wheels
    python scripts/build_parents.py wheels

Writes ukbmm/biobank/schema/parents.tsv: child, condition, value, source. The rows on the touchscreen questionnaire are
written here, from the notes of the fields in the public showcase. Which food belongs to which question of the 24-hour
recall is taken from FUNPACK (Apache-2.0, University of Oxford; see NOTICE); its other rows are not: they fill an answer
where the question was asked, and not where it was not.
"""

import io
import re
import sys
import zipfile
from pathlib import Path

import polars as pl

SCHEMA = Path(__file__).parent.parent / "ukbmm" / "biobank" / "schema"
NOTES = "showcase, notes of the field"
NONE, NOT_ASKED = "[]", None
WEEKLY = (1568, 1578, 1588, 1598, 1608, 5364)
MONTHLY = (4407, 4418, 4429, 4440, 4451, 4462)
PAINS = {
    1: 3799,
    2: 4067,
    3: 3404,
    4: 3571,
    5: 3741,
    6: 3414,
    7: 3773,
}  # by code of field 6159; 8 is "all over the body"
ACTIVITIES = {
    1: (971, 981),
    2: (3637, 3647),
    3: (991, 1001),
    4: (1011, 1021),
    5: (2624, 2634),
}  # by code of 6164
OF_WOMEN = (2674, 2694, 2714, 2724, 2734, 2774, 2784, 2814, 2834, 3591, 3581, 2754, 2764, 3872, 2744, 2794, 2804,
            3536, 3546, 2824, 2684, 2704, 3700, 3710, 3720)  # fmt: skip
OF_MEN = (2365, 2375, 2385, 2395, 2405, 3809)
ROWS = [  # child, condition, value
    *((child, f"{parent} == 0", 0) for child, parent in ((874, 864), (894, 884), (914, 904))),
    (924, "864 == 0", NOT_ASKED),
    *(
        (child, f"6164 lacks {code}", NOT_ASKED)
        for code, children in ACTIVITIES.items()
        for child in children
    ),
    *((child, "6142 lacks 1", NOT_ASKED) for child in (757, 767, 777, 796, 806, 816, 826)),
    *((child, "1110 == 0", NOT_ASKED) for child in (1120, 1130, 1140, 1150)),
    (3456, "1239 == 0", 0),
    (3456, "20116 == 0", 0),
    (2887, "20116 == 0", 0),
    *(
        (child, "20116 == 0", NOT_ASKED)
        for child in (2867, 2877, 2897, 2907, 2926, 2936, 3436, 3446, 6183, 6194)
    ),
    *((child, "1239 == 0", NOT_ASKED) for child in (3436, 3446, 3466, 3476, 3486, 3496, 3506)),
    *((child, "1558 == 6", 0) for child in (*WEEKLY, *MONTHLY)),
    *((child, "1558 >= 4 and 1558 <= 5", NOT_ASKED) for child in WEEKLY),
    *((child, "1558 <= 3", NOT_ASKED) for child in MONTHLY),
    (1618, "1558 == 6", NOT_ASKED),
    (1508, "1498 == 0", NOT_ASKED),
    (2976, "2443 == 0", NOT_ASKED),
    (2986, "2443 == 0", NOT_ASKED),
    (2355, "2345 == 0", NOT_ASKED),
    (2684, "2674 == 0", NOT_ASKED),
    (2704, "2694 == 0", NOT_ASKED),
    (3809, "2365 == 0", NOT_ASKED),
    *((child, "2734 == 0", NOT_ASKED) for child in (2744, 2754, 2764, 3872)),
    *((child, "2784 == 0", NOT_ASKED) for child in (2794, 2804)),
    *((child, "2814 == 0", NOT_ASKED) for child in (3536, 3546)),
    (2824, "3591 == 0", NOT_ASKED),
    (3581, "2724 == 0", NOT_ASKED),
    *((child, "2774 == 0", 0) for child in (3829, 3839, 3849)),
    (6141, "709 == 1", NOT_ASKED),
    *((child, f"6159 lacks {code} and 6159 lacks 8", 0) for code, child in PAINS.items()),
    (2956, "6159 lacks 8", 0),
    *(
        (child, f"{count} == 0", NONE)
        for child, count in ((20001, 134), (20002, 135), (20003, 137), (20004, 136))
    ),
    *((child, "31 == 1", NOT_ASKED) for child in OF_WOMEN),
    *((child, "31 == 0", NOT_ASKED) for child in OF_MEN),
    *(  # flags of urine assays, from the labels of codings 196 to 199: "Result below 6.7 mg/L"
        (child, f"{flag} == '{code}'", "below_detection")
        for child, flag, code in (
            (30500, 30505, "<6.7"),
            (30510, 30515, "<88"),
            (30520, 30525, "<2.0"),
            (30530, 30535, "<10"),
        )
    ),
]


def diet_rows(wheels: Path, yes_or_no: set[int], multiple: set[int]) -> list[tuple]:
    "Foods of the 24-hour recall: none was taken where the group was not, or where it was and this one was not ticked."
    wheel = next(wheels.glob("fmrib_unpack_fmrib_config-*.whl"))
    data = io.BytesIO(zipfile.ZipFile(wheel).read("funpack/configs/fmrib/variables_parentvalues.tsv"))
    rows = []
    for child, condition, _ in pl.read_csv(data, separator="\t", infer_schema=False).iter_rows():
        match = re.fullmatch(r"v(\d+) == 1", condition)
        if match and int(match[1]) in yes_or_no:
            source = "FUNPACK variables_parentvalues; showcase, notes of the field"
            several = int(child) in multiple
            rows.append(
                (int(child), f"{match[1]} {'== 0' if several else '>= 0'}", NONE if several else "0", source)
            )
    return rows


def main(wheels: Path) -> None:
    fields = pl.read_parquet(SCHEMA / "fields.parquet")
    yes_or_no = set(fields.filter(pl.col("encoding_id") == 100010)["field_id"])
    multiple = set(fields.filter(pl.col("value_type") == 22)["field_id"])
    rows = [
        (child, condition, None if value is None else str(value), NOTES) for child, condition, value in ROWS
    ]
    table = pl.DataFrame(
        [*rows, *diet_rows(wheels, yes_or_no, multiple)],
        schema={"child": pl.Int32, "condition": pl.String, "value": pl.String, "source": pl.String},
        orient="row",
    )
    table.write_csv(SCHEMA / "parents.tsv", separator="\t")
    print(f"{table.height} rows, {table['child'].n_unique()} children")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
