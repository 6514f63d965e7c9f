"What the ingest report and the description say is exactly what was planted, and tells of nobody."

import datetime
import gzip
import html
import itertools
import json
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ukbmm.biobank import counting
from ukbmm.biobank import description as module
from ukbmm.biobank.cleaning import MISSING_KINDS, clean_column, read_special_values
from ukbmm.biobank.counting import (
    GROUPS,
    OTHER,
    OWN,
    column_rows,
    count_bounds,
    count_columns,
    group_of,
    ingest_day,
    known_values,
    limits_of,
    show_percent,
)
from ukbmm.biobank.description import (
    describe,
    description,
    description_table,
    group_shares,
    ingest_report,
    occasion_shares,
)
from ukbmm.biobank.dictionary import Dictionary, Field, save_dictionary
from ukbmm.biobank.store import Biobank, ingest
from ukbmm.core import StoreError
from ukbmm.disclosure import DisclosureError, scan_text

D = Dictionary.builtin()
N = 120  # People in the files; the last three withdraw
EIDS = np.arange(3_000_001, 3_000_001 + N)
HERE = N - 3


def column(*runs, fill=""):
    "A column of text: (value, how often) one after the other, then `fill`."
    values = [value for value, times in runs for _ in range(times)]
    return values + [fill] * (N - len(values))


FIRST = {
    "eid": EIDS.astype(str).tolist(),
    "31-0.0": column(("0", 70), fill="1"),
    "1070-0.0": column(("-10", 8), ("-1", 6), ("-3", 2), ("", 10), ("25", 7), fill="3"),
    "20116-0.0": column(("7", 12), ("-3", 9), fill="1"),
    "53-0.0": column(("2911-01-01", 3), ("1850-01-01", 5), fill="2008-02-03"),
    "130000-0.0": column(("1902-02-02", 6), ("2037-07-07", 5), ("2015-03-02", 20)),
    "3166-0.0": column(("1900-01-01 00:00:00", 7), ("2999-01-01 10:00:00", 8), fill="2008-02-03 11:30:00"),
    "50-0.0": column(("-170", 6), ("171", 40), ("", 50), fill="160"),
    "50-1.0": column(("171", 4)),  # so few that all of them are hidden
    "50-9.0": column(("171", 60)),
    "6150-0.0": column(("1", 40), ("-7", 12), ("-3", 8), ("4", 25)),
    "6150-0.1": column(("", 30), ("4", 10), ("", 20), ("-3", 6)),
    "20002-0.0": column(("1065", 50), ("99", 8), ("1111", 10)),
    "20002-0.1": column(("1111", 50), ("98", 8)),
    "22189-0.0": column(("-3.5", 60), fill="-1.25"),  # negative by nature, and no unit
    "21003-0.0": column(fill="55"),
    "41202-0.0": column(("I10", 30)),
    "something else": column(fill="x"),
}
LABELLED = {
    "Participant ID": [str(-1), str(-2), *EIDS[2:].astype(str)],
    "Sex": column(("Male", 1), fill="Female"),
    "Pork intake | Instance 0": column(fill="Once a week"),
    "Non-cancer illness code, self-reported | Instance 1": column(("hypertension", 20), ("myasthenia gravis", 14), fill="asthma"),
    "Pulse rate, automated reading | Instance 0 | Array 0": column(("70.0", 100)),
    "Date of attending assessment centre | Instance 1": column(("25/12/2012", 100)),
}  # fmt: skip


def write(path, columns, delimiter=","):
    names = [f'"{name}"' if "," in name else name for name in columns]
    lines = [delimiter.join(names), *(delimiter.join(row) for row in zip(*columns.values(), strict=True))]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Biobank:
    "Three files with every fault that reading mends or reports, and values whose counts are known."
    folder = tmp_path_factory.mktemp("planted")
    (folder / "first.csv.gz").write_bytes(
        gzip.compress(write("", FIRST).replace("something", "sömething").encode("cp1252"))
    )
    (folder / "labelled.csv").write_text(write("", LABELLED))
    ragged = ["eid\t21001-0.0\t23104-0.0", *(f"{eid}\t27.5\t27" for eid in EIDS)]
    ragged[5:8] = [line.rpartition("\t")[0] for line in ragged[5:8]]
    (folder / "ragged.txt").write_text("\n".join(ragged[:101]) + "\n")  # 20 are not in it
    (folder / "gone.csv").write_text("".join(f"{eid}\n" for eid in EIDS[-3:]))
    files = [folder / name for name in ("first.csv.gz", "labelled.csv", "ragged.txt")]
    return ingest(files, folder / "planted.biobank", withdrawals=folder / "gone.csv", drop_negative=True)


@pytest.fixture(scope="module")
def report(planted):
    return ingest_report(planted)


@pytest.fixture(scope="module")
def rows(report):
    return {row["column"]: row for row in json.loads(report.to_json())["columns"]}


def test_the_planted_counts_of_missing_are_in_the_report(rows):
    tv = rows["p1070_i0"]  # 117 people; 2 prefer not to answer: hidden, and the next smallest part with them
    assert (
        tv["missing"] == {"empty": 10, "do_not_know": "<10", "prefer_not_to_answer": "<5"}
        and tv["with_value"] == HERE - 18
    )
    assert (
        rows["p20116_i0"]["missing"] == {"prefer_not_to_answer": 9}
        and rows["p20116_i0"]["with_value"] == HERE - 9
    )
    assert rows["p31"]["missing"] == {} and rows["p31"]["share"] == "100%"
    assert rows["p41202"]["with_value"] == 30 and rows["p41202"]["missing"] == {"empty": 87}
    assert rows["p50_i0"]["missing"] == {"empty": 50}
    assert rows["p130000"]["missing"] == {"empty": HERE - 31, "from_birth": 6, "placeholder": 5}
    assert rows["p130000"]["with_value"] == 20
    assert rows["p3166_i0_a0"]["missing"] == {"occurred_date_unknown": 7}
    heart = rows["p6150_i0"]  # 12 say "none of the above", which is an answer; 6 refuse beside an answer
    assert heart["missing"] == {"empty": 32, "prefer_not_to_answer": 8}
    assert heart["with_value"] == HERE - 40 and heart["out_of_range"] == {}


def test_the_planted_faults_are_in_the_report_and_nothing_else(rows):
    found = {name: row["out_of_range"] for name, row in rows.items() if row["out_of_range"]}
    assert found == {
        "p1070_i0": {"above": 7},
        "p20116_i0": {"code": 12},
        "p53_i0": {"below": "<10", "above": "<5"},  # 5 and 3
        "p3166_i0_a0": {"above": 8},
        "p50_i0": {"below": 6},
        "p20002_i0": {"code": 8},
    }
    beyond = {name: row["beyond_dictionary"] for name, row in rows.items() if row["beyond_dictionary"]}
    assert beyond == {"p50_i9": "occasion 9; the dictionary has 0 to 3"}
    assert rows["p20116_i0"]["codes_checked"] and rows["p41202"]["codes_checked"]
    assert not rows["p50_i0"]["codes_checked"]


@pytest.mark.parametrize(
    ("field", "good", "odd"),
    [("41270", ["I10", "I219", "C8331", "M6288", "Z99X"], ["i219", "I1", "219", "I10I219", "X"]),
     ("41271", ["410", "4109", "41099", "V252", "E8123"], ["41", "410999", "V2", "E81", "I21"]),
     ("41272", ["K40", "K401", "X998"], ["K4", "K4011", "401", "k401"]),
     ("41273", ["863", "8631"], ["86", "86312", "K863"])],
)  # fmt: skip
def test_a_code_of_icd_or_opcs_that_has_not_the_shape_of_one_is_a_fault(tmp_path, field, good, odd):
    first = [code for code in good for _ in range(10)] + odd * 2
    second = [""] * (len(first) - 6) + [odd[0]] * 6  # the same people once more
    table = {
        "eid": [str(3_000_000 + i) for i in range(len(first))],
        f"{field}-0.0": first,
        f"{field}-0.1": second,
    }
    (tmp_path / "codes.csv").write_text(write("", table))
    biobank = ingest(tmp_path / "codes.csv", tmp_path / "codes.biobank")
    (row,) = json.loads(ingest_report(biobank).to_json())["columns"]
    assert row["out_of_range"] == {"code": 2 * len(odd)} and row["codes_checked"]
    coding = biobank.fields[int(field)].coding
    labelled = Dictionary(D.fields, D.labels | {coding: {good[0]: "something"}})
    known = known_values(D[int(field)], labelled)
    assert known.shape is None and known.codes == (good[0],)  # labels say more than a shape


def test_a_column_that_four_people_have_says_no_more_than_that(rows):
    assert rows["p50_i1"]["with_value"] == "<5" and rows["p50_i1"]["share"] == "<4%"
    assert rows["p50_i1"]["missing"]["empty"] != 113  # or the four could be computed


def test_what_became_of_the_files_is_in_the_report(report):
    values = json.loads(report.to_json())
    first, labelled, ragged = values["tables"]
    assert first["read"] == ["decompressed", "read as cp1252"] and first["left_out"]["unknown_names"] == [
        "sömething else"
    ]
    assert labelled["spellings"] == ["titles"] and "dates are written day/month/year" in labelled["read"]
    assert {"Sex", "Non-cancer illness code, self-reported | Instance 1"} <= set(labelled["labels_to_codes"])
    assert labelled["decimals_to_whole_numbers"] == ["Pulse rate, automated reading | Instance 0 | Array 0"]
    left = labelled["left_out"]
    assert left["ambiguous_titles"] == {"Pork intake | Instance 0": ["p1389", "p103030"]}
    assert left["undecided_labels"] == {
        "Non-cancer illness code, self-reported | Instance 1": "about 10"
    }  # 14
    assert left["negative_identifiers"] == "<5" and labelled["participants_not_in_it"] == "<5"
    assert (
        ragged["read"] == ["some lines were shorter or longer than the header"]
        and ragged["participants_not_in_it"] == "about 20"
    )
    assert values["participants"] == HERE and values["withdrawn"] == "<5"
    assert values["joined"]["columns_in_several_files"] == 1 and values["joined"][
        "participants_who_differ"
    ] == {"p31": "about 50"}
    assert values["package"] and all(len(source["sha256"]) == 64 for source in values["sources"])
    assert [source["kind"] for source in values["sources"]] == ["table"] * 3 + ["withdrawals"]


def test_every_key_of_the_json_is_documented(report):
    values = json.loads(report.to_json())
    said = {part for key in values["keys"] for part in key.split(".")}
    keys = {key for row in values["columns"] for key in row} | {
        key for table in values["tables"] for key in (*table, *table["left_out"])
    }
    assert set(values) <= set(values["keys"])
    plain = {
        "title",
        "type",
        "units",
        "group",
        "occasion",
        "file",
        "columns",
        "spellings",
        "participants_not_in_it",
        "left_out",
    }
    assert keys - said - plain == set()


def test_neither_page_nor_json_holds_an_identifier_or_a_path(planted, report, tmp_path):
    paths = report.write(tmp_path / "out") + [description(planted).write(tmp_path / "out" / "d.html")]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not any(str(eid) in text for eid in EIDS) and scan_text(text) == []
        assert str(planted.path.parent) not in text and "http" not in text.replace("http-equiv", "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "d.html",
        "ingest.html",
        "ingest.json",
    ]


def test_an_identifier_as_name_of_a_column_or_a_file_is_blanked(tmp_path):
    people = "".join(f"{eid},170\n" for eid in EIDS)
    (tmp_path / "3000001.csv").write_text("eid,50-0.0,3000002\n" + people.replace("\n", ",1\n"))
    values = ingest_report(ingest(tmp_path / "3000001.csv", tmp_path / "b.biobank")).values
    assert values["tables"][0]["file"] == "[eid].csv" and values["tables"][0]["left_out"][
        "unknown_names"
    ] == ["[eid]"]


def test_what_looks_like_an_identifier_stops_the_report(report, tmp_path):
    leaky = module.IngestReport({**report.values, "written_by": "participant 1234567"})
    with pytest.raises(DisclosureError):
        leaky.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_people_who_have_withdrawn_are_in_no_count(planted):
    gone = set(EIDS[-3:])
    table = pd.DataFrame(FIRST)
    here = table[~table["eid"].astype(int).isin(gone)]
    counted = count_columns(planted)
    assert counted.n == HERE
    for name, source in (("p1070_i0", "1070-0.0"), ("p130000", "130000-0.0"), ("p41202", "41202-0.0")):
        assert counted.columns[name]["missing:empty"] == (here[source] == "").sum()
    assert counted.has["Lifestyle"].shape == (HERE,)


def ranges(shown) -> range:
    "The counts that a published one may stand for."
    low, high = count_bounds(shown)
    return range(low, high + 1)


def ways_to(total: int, parts: list) -> list[set[int]]:
    "Values that each part can have, given what is published of all parts and their sum."
    hidden = [i for i, part in enumerate(parts) if isinstance(part, str)]
    rest = total - sum(part for part in parts if not isinstance(part, str))
    found = [set() for _ in parts]
    for combination in itertools.product(*(ranges(parts[i]) for i in hidden)):
        if sum(combination) == rest:
            for i, value in zip(hidden, combination, strict=True):
                found[i].add(value)
    return found


def test_no_small_count_follows_from_the_others():
    rng, tried = np.random.default_rng(0), 0
    for _ in range(400):
        n = int(rng.integers(30, 400))
        small = rng.choice([0, 0, 1, 2, 3, 4, 6, 9, 15], 5)
        counts = dict(
            zip(
                ["missing:empty", "missing:do_not_know", "out:code", "out:below", "out:above"],
                map(int, small),
                strict=True,
            )
        )
        if rng.random() < 0.5:
            counts["missing:empty"] = n - int(small.sum()) - int(rng.choice([1, 3, 6, 20]))
        present = n - counts["missing:empty"] - counts["missing:do_not_know"]
        if (
            present < sum(counts[what] for what in ("out:code", "out:below", "out:above"))
            or counts["missing:empty"] < 0
        ):
            continue
        shown = counting._publish(counts, n)
        tried += 1
        parts = [shown["with_value"], *(shown["missing"].get(kind, 0) for kind in ("empty", "do_not_know"))]
        true = [present, counts["missing:empty"], counts["missing:do_not_know"]]
        for value, part, may in zip(true, parts, ways_to(n, parts), strict=True):
            assert (
                part == value
                if not isinstance(part, str)
                else value in may and (not 0 < value < 5 or len(may) > 1)
            )
        inner = [
            shown["out_of_range"].get("code", 0),
            shown["out_of_range"].get("below", 0),
            shown["out_of_range"].get("above", 0),
        ]
        hidden = [part for part in inner if isinstance(part, str)]
        if isinstance(
            shown["with_value"], int
        ):  # how many values are within follows, but never to one small number
            rest = present - sum(part for part in inner if not isinstance(part, str))
            within = {rest - sum(of) for of in itertools.product(*map(ranges, hidden))}
            assert len(within) > 1 or not 0 < min(within) < 5
        for value, part in zip(
            (counts["out:code"], counts["out:below"], counts["out:above"]), inner, strict=True
        ):
            assert (
                part == value
                if not isinstance(part, str)
                else value in ranges(part) and len(ranges(part)) > 1
            )
    assert tried > 200


def test_a_share_says_no_more_than_the_count():
    for n in (40, 100, 117, 1000):
        for present in range(n + 1):
            shown = counting._publish({"missing:empty": n - present}, n)
            if isinstance(shown["with_value"], str):
                text = show_percent(shown["with_value"], n)
                assert not re.fullmatch(r"\d+%", text), text


def test_counts_that_overlap_are_rounded():
    assert [module._about(count) for count in (0, 1, 4, 5, 14, 16, 1234)] == [
        0,
        "<5",
        "<5",
        "about 10",
        "about 10",
        "about 20",
        "about 1,230",
    ]
    for first in range(5, 200):  # a difference of 1 to 4 does not show
        assert sum(module._about(first) == module._about(other) for other in range(5, 205)) >= 9


LISTS = (6150, 6152, 6155, 6159, 6177, 20002, 41202)  # with special codes and without, numbers and text
DATES = (53, 130708, 42000, 21046, 28146, 3166, 24609)  # of each coding of special dates, and times


def answers(field: Field, rng) -> np.ndarray:
    "What 80 people may have answered: every code, special ones and codes that do not exist."
    if field.value_type in ("date", "time"):
        days = [
            "2008-01-02",
            "2037-07-07",
            "1900-01-01",
            "1901-01-01",
            "1903-03-03",
            "1910-01-01",
            "1999-01-01",
        ]
        hours = ["T00:00:00", "T07:30:00"] if field.value_type == "time" else [""]
        return np.char.add(rng.choice(days, 80), rng.choice(hours, 80))
    labels = D.labels.get(field.coding or -1, {})
    codes = [code for code in labels if field.text_codes or code.lstrip("-").isdigit()] or ["1", "2"]
    few = [code for code in codes if code.startswith("-")] + codes[:4]
    return rng.choice(few if field.value_type == "categorical_multiple" else codes, 80)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Biobank:
    "80 people and some 300 columns of every type, many of them nearly empty."
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("mixed")
    kinds = ("integer", "continuous", "categorical_single", "date")
    plain = [
        field for field in D.fields.values() if field.value_type in kinds and field.field_id not in DATES
    ]
    table = {"eid": EIDS[:80]}
    for field in (
        *rng.choice(np.array(plain, dtype=object), 300, replace=False),
        *(D[i] for i in LISTS + DATES),
    ):
        some = rng.choice([0.03, 0.5, 0.96]) if field in plain else 0.6
        for position in range(3 if field.value_type == "categorical_multiple" else 1):
            table[f"{field.field_id}-0.{position}"] = np.where(rng.random(80) < some, answers(field, rng), "")
    pd.DataFrame(table).to_csv(folder / "mixed.csv", index=False)
    return ingest(folder / "mixed.csv", folder / "mixed.biobank")


def assert_counted_as_cleaned(biobank: Biobank, special: pl.DataFrame | None = None) -> set[tuple[str, str]]:
    "Compare every count with the cleaned column; returns kinds with the type of column that they occur in."
    counted, found = count_columns(biobank, special=special), set()
    table = biobank.read(biobank.columns)
    for name in biobank.columns:
        field = biobank.field(name)
        _, kinds = clean_column(table[name], field, special)
        for position, kind in enumerate(MISSING_KINDS[1:], 1):
            count = int((kinds == position).sum())
            assert counted.columns[name].get(f"missing:{kind}", 0) == count, (name, kind)
            found |= {(field.value_type, kind)} if count else set()
    return found


def test_counts_are_those_of_the_cleaned_columns(mixed):
    found = assert_counted_as_cleaned(mixed)
    assert found >= {
        ("categorical_multiple", kind) for kind in ("empty", "do_not_know", "prefer_not_to_answer")
    }
    assert found >= {("date", kind) for kind in ("occurred_date_unknown", "from_birth", "placeholder")}
    assert found >= {
        ("time", "occurred_date_unknown"),
        ("integer", "do_not_know"),
        ("categorical_single", "empty"),
    }


def test_special_values_of_ones_own_are_counted(mixed, tmp_path):
    rows = ["coding,value,kind", "100605,1,redacted", "100605,-3,present", "819,2037-07-07,present", "819,2008-01-02,redacted",
            "439,1999-01-01,not_measured"]  # fmt: skip
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n")
    own = read_special_values(tmp_path / "own.csv")
    found = assert_counted_as_cleaned(mixed, own)
    assert {("categorical_multiple", "redacted"), ("date", "redacted"), ("time", "not_measured")} <= found
    shipped, mine = (count_columns(mixed, ["p130708"], special).columns["p130708"] for special in (None, own))
    assert "missing:redacted" not in shipped and mine["missing:redacted"] > 0
    assert shipped["out:above"] == 0 and mine["out:above"] == 0  # its coding still gives 2037-07-07 a label
    rows = [row for row in ingest_report(mixed, own).values["columns"] if "redacted" in row["missing"]]
    assert {row["column"] for row in rows} >= {"p6150_i0", "p130708"}
    assert [row for row in description(mixed, ["p130708"], own).rows] == [
        row for row in rows if row["column"] == "p130708"
    ]
    assert "redacted" in describe(mixed, ["p130708"], own).columns
    assert "redacted" not in describe(mixed, ["p130708"]).columns


def test_columns_in_small_portions_are_counted_alike(mixed, monkeypatch):
    whole = count_columns(mixed)
    monkeypatch.setattr(counting, "GROUP_CELLS", 80 * 7)  # seven columns at a time
    parts = count_columns(mixed)
    assert parts.columns == whole.columns and list(parts.columns) == mixed.columns
    assert all(np.array_equal(parts.has[group], whole.has[group]) for group in whole.has)


def test_who_has_anything_of_a_group_is_who_has_a_value_in_one_of_its_columns(mixed):
    counted, table = count_columns(mixed), mixed.read(mixed.columns)
    for group, has in counted.has.items():
        names = [name for name in mixed.columns if group_of(mixed.field(name)) == group]
        assert np.array_equal(has, table.select(names).to_pandas().notna().any(axis=1).to_numpy())


def test_unknown_columns_and_none_at_all_are_refused(mixed):
    with pytest.raises(StoreError, match="column p99: expected a column of the Biobank"):
        description(mixed, ["p99"])
    with pytest.raises(StoreError, match="at least one column"):
        count_columns(mixed, [])


@pytest.mark.parametrize(
    ("units", "kind", "limits"),
    [("Kg/m2", "continuous", (0, None)), ("mmol/L", "continuous", (0, None)), ("hours/day", "integer", (0, 24)), ("calendar year", "integer", (1900, 2026)),
     ("percent", "continuous", (None, None)), ("Std.Devs", "continuous", (None, None)), ("diopters", "continuous", (None, None)),
     (None, "integer", (None, None)), ("Kg", "text", (None, None))],
)  # fmt: skip
def test_limits_follow_from_the_unit(units, kind, limits):
    assert limits_of(Field(1, "x", kind, units=units), datetime.date(2026, 5, 1)) == limits


def test_every_category_of_the_showcase_is_in_one_group():
    groups = [group_of(field) for field in D.fields.values()]
    assert set(groups) == set(GROUPS)
    numbers = [
        n
        for text in GROUPS.values()
        for part in text.split()
        for n in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)
    ]
    assert len(numbers) == len(set(numbers))
    assert group_of(Field(31, "Sex", "integer", source="field.txt")) == group_of(D[31])
    assert group_of(Field(999_999, "x", "text", main_category=100081)) == "Blood counts"
    assert (
        group_of(Field(999_999, "x", "text"))
        == group_of(Field(999_999, "x", "text", main_category=424_242))
        == OTHER
    )
    assert group_of(Field(31, "Sex", "integer")) == group_of(
        D[31]
    )  # of a dictionary that was written earlier
    assert (
        group_of(Field(31, "Tail", "integer", source="mine.tsv"))
        == group_of(Field(999_999, "x", "text", source="mine.tsv"))
        == OWN
    )


def test_the_day_of_the_ingest_is_the_manifests_where_it_has_one(planted):
    assert ingest_day(planted) == datetime.date.today()
    noted = Biobank(planted.path)
    noted.manifest["ingested"] = "2021-03-04T10:00:00"
    assert ingest_day(noted) == datetime.date(2021, 3, 4)
    assert count_columns(noted, ["p3166_i0_a0"]).columns["p3166_i0_a0"]["out:above"] == 8


def test_shares_by_group_and_occasion_are_means_over_columns(rows):
    listed = list(rows.values())
    body = group_shares(listed, HERE).row(
        by_predicate=pl.col("group") == "Body measures and fitness", named=True
    )
    shown = [rows[name]["with_value"] for name in ("p50_i0", "p50_i9", "p21001_i0", "p23104_i0")]
    middles = [sum(count_bounds(one)) / 2 / HERE for one in (*shown, rows["p50_i1"]["with_value"])]
    assert body["columns"] == 5 and body["present"] == pytest.approx(np.mean(middles))
    occasions = occasion_shares(listed, HERE)
    assert occasions.columns == [
        "group",
        "once",
        "visit 0",
        "visit 1",
        "other occasions",
    ]  # the ninth visit is among the others
    assert occasions.filter(pl.col("group") == "Hospital, doctor and registers")[
        "once"
    ].item() == pytest.approx(30 / HERE)


def test_every_figure_of_a_description_is_drawn_from_published_numbers(planted, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "plot_distribution", lambda axis, found, *words: drawn.append(found))
    described = description(planted)
    assert len(drawn) > 8 and {found.kind for found in drawn} == {"number", "date", "category"}
    for found in drawn:
        assert all(count == 0 or count >= 5 for count in (*found.counts, found.rest))
    assert "p50_i1" not in [row["column"] for row in described.rows if row["with_value"] != "<5"]
    assert set(described.figures) >= {"missing", "occasions", "together"}


def test_the_table_of_a_description_has_the_columns_in_order(planted):
    described = description(planted, ["p20116_i0", "p1070_i0"])
    table = described.table
    assert table["column"].to_list() == ["p20116_i0", "p1070_i0"]
    assert (
        table.row(0, named=True)["prefer_not_to_answer"] == "9" and table.row(1, named=True)["empty"] == "10"
    )
    assert description_table(described.rows).equals(table)
    assert "The columns that were asked for." in described.to_html()
    assert "<table" not in described._repr_html_() and described._repr_html_().count("<img") == 3


def test_genotypes_are_among_the_patterns(biobank):
    described = description(biobank)
    ticks = [label.get_text() for label in described.figures["together"].axes[0].get_xticklabels()]
    assert ticks[-1] == "Genotypes: array"
    genotypes = ingest_report(biobank).values["genotypes"]
    have = int(biobank.genotypes().present(np.arange(400)).sum())
    assert genotypes[0]["participants_with"] == have and genotypes[0]["participants_without"] == 400 - have


def test_a_page_of_thousands_of_columns_stays_small_and_has_a_line_for_each_field(tmp_path):
    fields = [
        field for field in D.fields.values() if field.value_type == "continuous" and field.instance_id == 2
    ][:2500]
    names = [f"{field.field_id}-{instance}.0" for field in fields for instance in (0, 1)]
    assert len(names) == 5000
    rows = "".join(f"{eid}," + ",".join(["1.5"] * 5000) + "\n" for eid in EIDS[:30])
    (tmp_path / "wide.csv").write_text("eid," + ",".join(names) + "\n" + rows)
    report = ingest_report(ingest(tmp_path / "wide.csv", tmp_path / "wide.biobank"))
    page, machine = report.to_html(), report.to_json()
    assert len(page) < 1_500_000 and len(machine) < 2_500_000
    assert page.count("<tr><td>p") == 5000 and len(json.loads(machine)["columns"]) == 5000
    assert page.count("<details>") == len({group_of(field) for field in fields})  # folded away


def test_array_positions_share_a_line(planted):
    line = {"column": "p4080_i0_a0", "title": "x", "type": "integer", "units": "", "group": "Lifestyle", "share": "5%", "with_value": 5,
            "missing": {}, "out_of_range": {}, "beyond_dictionary": ""}  # fmt: skip
    (found,) = module._lines_by_group(
        [line, {**line, "column": "p4080_i0_a1", "with_value": 9, "share": "9%"}], 100
    )["Lifestyle"]
    assert (found["column"], found["more"], found["share"], found["width"]) == ("p4080_i0_a1", 1, "9%", 9)


def test_titles_and_names_cannot_bring_markup_into_the_page(tmp_path):
    (tmp_path / "own.tsv").write_text(
        "FieldID\tField\tValueType\n900001\t<script>alert(1)</script>\tInteger\n"
    )
    (tmp_path / "t.csv").write_text("eid,900001-0.0,<b>\n" + "".join(f"{eid},1,1\n" for eid in EIDS))
    biobank = ingest(tmp_path / "t.csv", tmp_path / "b.biobank", fields=tmp_path / "own.tsv")
    for text in (
        ingest_report(biobank).to_html(),
        ingest_report(biobank)._repr_html_(),
        description(biobank).to_html(),
    ):
        assert "<script>alert" not in text and "<b>," not in text
    assert ingest_report(biobank).values["columns"][0]["group"] == OWN


def test_rows_are_those_of_the_report(planted, report):
    assert column_rows(planted, count_columns(planted)) == report.values["columns"]


def test_codes_without_a_rule_are_named_in_every_report_until_there_is_one(tmp_path):
    head = "field_id\ttitle\tvalue_type\tbase_type\tunits\tinstanced\tarrayed\tencoding_id\tinstance_id\tinstance_max\tarray_max\tversion\n"
    (tmp_path / "field.txt").write_text(
        head + "990001\tHours\t11\t0\thours\t0\t0\t7777\t0\t0\t0\t2027-01-01\n"
    )
    (tmp_path / "esimpint.txt").write_text(
        "encoding_id\tvalue\tmeaning\tshowcase_order\n7777\t-3\tPrefer not to answer\t1\n"
    )
    save_dictionary(D.overlay(tmp_path / "field.txt", tmp_path / "esimpint.txt"), tmp_path / "d.parquet")
    (tmp_path / "t.csv").write_text(
        "eid,990001-0.0,20016-0.0\n" + "".join(f"{3000001 + i},{-3 if i % 2 else i},1\n" for i in range(40))
    )
    (tmp_path / "own.csv").write_text("coding,value,kind\n7777,-3,prefer_not_to_answer\n2536,-9,present\n")
    biobank = ingest(tmp_path / "t.csv", tmp_path / "b", dictionary=tmp_path / "d.parquet")
    (line,) = (line for line in biobank.report() if line.startswith("WITHOUT A RULE, kept as values"))
    for word in (
        "coding 7777 of field 990001 (-3 Prefer not to answer)",
        "coding 2536 of field 20016 (its labels are not known)",
        "--special-values",
    ):
        assert word in line
    report = ingest_report(biobank)
    assert json.loads(report.to_json())["codes_without_a_rule"] == [
        {"coding": 2536, "codes": {}, "fields": [20016]},
        {"coding": 7777, "codes": {"-3": "Prefer not to answer"}, "fields": [990001]},
    ]
    page = html.unescape(report.to_html())
    assert "2 codings have codes that may stand for no value, and no rule says what they mean." in page
    assert "coding 7777 of field 990001 (-3 Prefer not to answer)" in page and "--special-values" in page
    assert biobank.clean(["p990001"])["p990001"].values[1] == -3  # nothing is guessed
    told = ingest(
        tmp_path / "t.csv",
        tmp_path / "c",
        dictionary=tmp_path / "d.parquet",
        special_values=tmp_path / "own.csv",
    )
    assert not any("WITHOUT A RULE" in line for line in told.report())
    assert (
        "codings have" not in ingest_report(told).to_html()
        and told.clean(["p990001"])["p990001"].values[1] is None
    )
