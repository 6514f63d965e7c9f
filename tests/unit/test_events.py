"Tables of records come out the same from every delivery, as pandas reads them, or are refused with the column and the line."

import contextlib
import datetime
import gzip
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ukbmm.biobank import events as module
from ukbmm.biobank import store
from ukbmm.biobank.delivery import RECORDS
from ukbmm.biobank.events import DATES, INTEGERS, events_of, read_records, records_by_kind
from ukbmm.biobank.store import Biobank, ingest
from ukbmm.core import EID_PATTERN, StoreError, TableError, rng_for

PEOPLE = np.array([1_000_003, 1_000_005, 1_000_008, 1_000_009, 1_000_011, 1_000_020])
STRANGER = 4_000_000
HEADERS = {
    "hesin": "eid ins_index dsource source epistart epiend epidur spelbgin elecdate admidate admimeth disdate",
    "hesin_diag": "eid ins_index arr_index level diag_icd9 diag_icd9_nb diag_icd10 diag_icd10_nb",
    "hesin_oper": "eid ins_index arr_index level opdate oper3 oper3_nb oper4 oper4_nb posopdur preopdur",
    "hesin_critical": "eid ins_index arr_index ccstartdate ccadmitype ccdisdate ccdisrdydate",
    "hesin_psych": "eid ins_index detncat detndate mentcat",
    "hesin_maternity": "eid ins_index anasdate numbaby numpreg",
    "hesin_delivery": "eid ins_index arr_index delmeth birweigt",
    "death": "eid ins_index dsource source date_of_death",
    "death_cause": "eid ins_index arr_index level cause_icd10",
    "gp_clinical": "eid data_provider event_dt read_2 read_3 value1 value2 value3",
    "gp_scripts": "eid data_provider issue_date read_2 bnf_code dmd_code drug_name quantity",
    "gp_registrations": "eid data_provider reg_date deduct_date",
}  # fmt: skip
TEXTS = [
    "G30..",
    "g30..",
    "I219",
    "0212000B0",
    "02.12.04.00.00",
    "00123",
    "4.50",
    "1E5",
    "Tabs, 28",
    " 7",
    None,
    None,
]


def draw_table(kind: str, n_rows: int = 60, seed: int = 0, people=(*PEOPLE[:5], STRANGER)) -> pd.DataFrame:
    "Rows of a table with dates, whole numbers and text as they are found, a third of the dates missing."
    rng, columns = rng_for(seed, kind), {}
    for name in HEADERS[kind].split():
        if name == "eid":
            columns[name] = np.sort(rng.choice(people, n_rows))
        elif name in INTEGERS:
            columns[name] = rng.integers(0, 4, n_rows)
        elif name in DATES:
            days = pd.Timestamp("1950-01-01") + pd.to_timedelta(rng.integers(0, 25_000, n_rows), unit="D")
            columns[name] = pd.Series(days).where(rng.random(n_rows) > 0.3)
        else:
            columns[name] = rng.choice(np.array(TEXTS, dtype=object), n_rows)
    return pd.DataFrame(columns)


def portal(table: pd.DataFrame, path, end="\n"):
    "Write a table as the Data Portal does."
    table.to_csv(path, sep="\t", index=False, date_format="%d/%m/%Y", lineterminator=end, quoting=3)
    return path


def platform(table: pd.DataFrame, path, prefix=""):
    "Write a table as RAP does."
    table.rename(columns=lambda name: prefix + name).to_csv(path, index=False, date_format="%Y-%m-%d")
    return path


def golden(table: pd.DataFrame) -> pl.DataFrame:
    "What a table shall become, by pandas."
    rows = {eid: row for row, eid in enumerate(PEOPLE)}
    table = table[table["eid"].isin(PEOPLE)].copy()
    table.insert(0, "row", table.pop("eid").map(rows))
    table = table.sort_values("row", kind="stable")
    columns = []
    for name in table:
        kind = pl.Date if name in DATES else pl.Int32 if name in INTEGERS or name == "row" else pl.String
        values = [None if pd.isna(value) else value for value in table[name].tolist()]
        values = [value.date() if kind == pl.Date and value else value for value in values]
        columns.append(pl.Series(name, values, kind))
    return pl.DataFrame(columns)


def read(paths, kind, tmp_path, name="out.parquet", **options):
    out = tmp_path / "records" / name
    summary = read_records(paths, kind, PEOPLE, out, **options)
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    return summary, pl.read_parquet(out)


@pytest.mark.parametrize("kind", HEADERS)
def test_every_table_is_the_same_from_both_deliveries_and_from_pandas(kind, tmp_path):
    table = draw_table(kind)
    expected = golden(table)
    about, mine = read([portal(table, tmp_path / "a.txt")], kind, tmp_path)
    assert mine.equals(expected) and mine.schema == expected.schema and mine.height > 30
    other, theirs = read([platform(table, tmp_path / "a.csv", f"{kind}.")], kind, tmp_path, "b.parquet")
    assert theirs.equals(expected) and theirs.schema == expected.schema
    strangers = int((table["eid"] == STRANGER).sum())
    people = table.loc[table["eid"] != STRANGER, "eid"].nunique()
    for summary in (about, other):
        assert (summary.n_rows, summary.n_left_out, summary.n_strangers) == (60 - strangers, strangers, 1)
        assert (summary.n_people, summary.columns) == (people, expected.columns[1:])
    bytes_of = [(tmp_path / "records" / name).read_bytes() for name in ("out.parquet", "b.parquet")]
    assert bytes_of[0] == bytes_of[1]


def test_the_tables_tested_are_those_that_a_delivery_may_hold():
    assert set(HEADERS) == set(RECORDS)


def test_compressed_windows_and_parquet_files_are_read_alike(tmp_path):
    table = draw_table("gp_clinical")
    expected = golden(table)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(portal(table, tmp_path / "a.txt").read_bytes()))
    portal(table, tmp_path / "b.txt", "\r\n")
    pl.from_pandas(table).write_parquet(tmp_path / "c.parquet")
    with_dates = pl.from_pandas(table).with_columns(pl.col("event_dt").cast(pl.Date))
    with_dates.write_parquet(tmp_path / "d.parquet")
    for name in ("a.txt.gz", "b.txt", "d.parquet"):
        assert read([tmp_path / name], "gp_clinical", tmp_path)[1].equals(expected), name
    with pytest.raises(TableError, match="c.parquet, column event_dt, row "):  # times are no dates
        read([tmp_path / "c.parquet"], "gp_clinical", tmp_path)


def test_a_file_that_polars_goes_on_writing_after_it_refused_a_date_spoils_nothing(tmp_path, monkeypatch):
    sink, refused = pl.LazyFrame.sink_parquet, []

    def late(frame, path, **options):
        try:
            sink(frame, path, **options)
        except pl.exceptions.PolarsError:
            refused.append(path)
            raise
        for other in refused:  # opened only now, by a thread that was late
            with contextlib.suppress(FileNotFoundError):
                other.write_bytes(b"")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", late)
    table = draw_table("gp_scripts")
    assert read([portal(table, tmp_path / "a.txt")], "gp_scripts", tmp_path)[1].equals(golden(table))
    assert len(refused) == 1


def test_text_in_cp1252_is_found_and_kept(tmp_path):
    table = draw_table("gp_scripts", 8)
    table["drug_name"] = "Crème 5µg"
    path = tmp_path / "a.txt"
    path.write_bytes(portal(table, path).read_text(encoding="utf-8").encode("cp1252"))
    about, mine = read([path], "gp_scripts", tmp_path)
    assert mine["drug_name"].unique().to_list() == ["Crème 5µg"]
    assert about.notes[0] == "a.txt: read as cp1252"
    with pytest.raises(TableError, match="expected text in utf-8"):
        read([path], "gp_scripts", tmp_path, encoding="utf-8")


@pytest.mark.parametrize("cells", [4, 200, 10**9])
def test_rows_in_any_order_are_sorted_in_pieces_of_any_size(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_CELLS", cells)
    monkeypatch.setattr(module, "BATCH_ROWS", 17)
    table = draw_table("hesin_diag", 200).sample(frac=1, random_state=3)
    assert not table["eid"].is_monotonic_increasing
    assert read([portal(table, tmp_path / "a.txt")], "hesin_diag", tmp_path)[1].equals(golden(table))


def test_several_files_are_put_together_and_shared_rows_taken_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_CELLS", 100)
    table = draw_table("gp_clinical", 90, people=PEOPLE)
    table["value3"] = [f"note {i}" for i in range(90)]  # no row is another's like
    twice = pd.concat([table[:50], table[:1]])  # a repetition within a file stays
    files = [portal(twice, tmp_path / "a.txt"), platform(table[40:], tmp_path / "b.csv")]
    about, mine = read(files, "gp_clinical", tmp_path)
    assert (about.n_rows, about.n_repeated, about.files) == (91, 10, ["a.txt", "b.csv"])
    assert mine.equals(golden(pd.concat([twice, table[50:]])))
    assert about.notes == ["a.txt: dates are written dd/mm/yyyy", "b.csv: dates are written yyyy-mm-dd"]


def test_files_with_other_columns_keep_them_all(tmp_path):
    table = draw_table("death", 12, people=PEOPLE)
    table["ins_index"] = range(12)
    extra = table.assign(remark="seen", dnx_death_id=table["eid"].astype(str) + "-0")
    files = [portal(table[:8], tmp_path / "a.txt"), platform(extra[6:], tmp_path / "b.csv")]
    about, mine = read(files, "death", tmp_path)
    assert mine.columns == ["row", *HEADERS["death"].split()[1:], "remark"]
    assert (about.n_repeated, mine["remark"].null_count()) == (2, 8)
    assert "b.csv: left out, keys of the platform: dnx_death_id" in about.notes


def test_an_empty_table_stays_one(tmp_path):
    (tmp_path / "a.txt").write_text("eid\tins_index\tdetncat\tdetndate\n")
    about, mine = read([tmp_path / "a.txt"], "hesin_psych", tmp_path)
    assert (about.n_rows, mine.height, mine.columns) == (0, 0, ["row", "ins_index", "detncat", "detndate"])


def test_quotes_are_letters_in_a_file_of_the_portal_and_csv_in_one_of_the_platform(tmp_path):
    drugs = ['Bandage 5" x 4m', '"Tablets', "plain", 'end"', '"', '""', 'a "b" c', "x, y"]
    table = draw_table("gp_scripts", len(drugs), people=PEOPLE)
    table["drug_name"] = drugs
    _, mine = read([portal(table, tmp_path / "a.txt")], "gp_scripts", tmp_path)
    _, theirs = read([platform(table, tmp_path / "a.csv")], "gp_scripts", tmp_path)
    assert theirs["drug_name"].to_list() == drugs
    assert [text or '""' for text in mine["drug_name"]] == drugs  # a cell of "" is an empty one
    quoted = tmp_path / "b.tsv"
    table.to_csv(
        quoted, sep="\t", index=False, date_format="%d/%m/%Y", quoting=2
    )  # R quotes text, and the header
    assert read([quoted], "gp_scripts", tmp_path)[1]["drug_name"].to_list() == drugs


def test_quotes_are_found_beyond_the_first_part_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COPY_BYTES", 64)
    table = draw_table("gp_scripts", 40, people=PEOPLE)
    table["drug_name"] = [
        f'"size {i}"' if i % 7 == 0 else f'{i}"' if i % 3 == 0 else "none" for i in range(40)
    ]
    mine = read([portal(table, tmp_path / "a.txt")], "gp_scripts", tmp_path)[1]["drug_name"].to_list()
    assert mine == [f"size {i}" if i % 7 == 0 else text for i, text in enumerate(table["drug_name"])]


def test_a_way_that_fails_and_goes_on_writing_does_not_spoil_the_next(tmp_path, monkeypatch):
    "Polars may go on writing a while after it has said that a date does not fit."
    table, whole, late = draw_table("death"), pl.LazyFrame.sink_parquet, []

    def sink(frame, target, **options):
        if not late:
            late.append(
                os.dup(target.fileno())
                if hasattr(target, "fileno")
                else os.open(target, os.O_RDWR | os.O_CREAT)
            )
        whole(frame, target, **options)
        os.pwrite(late[0], bytes(400), 4)

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", sink)
    summary, found = read([portal(table, tmp_path / "a.txt")], "death", tmp_path)
    os.close(late[0])
    assert found.equals(golden(table)) and summary.notes == ["a.txt: dates are written dd/mm/yyyy"]


DEATHS = "eid,ins_index,date_of_death\n1000003,0,31/01/2001\n1000005,0,02/03/2004\n"
BAD = {
    "both ways": (DEATHS + "1000008,0,2004-05-06\n", "column date_of_death, line 4: expected dates written dd/mm/yyyy as elsewhere in the file, found <5 written yyyy-mm-dd"),
    "the rarer way first": ("eid,ins_index,date_of_death\n1000003,0,01/02/2003\n1000005,0,2004-02-01\n1000008,0,2004-02-01\n", "line 2: expected dates written yyyy-mm-dd as elsewhere in the file, found <5 written dd/mm/yyyy"),
    "no such day": (DEATHS + "1000008,0,31/02/2004\n", "line 4: expected dates written dd/mm/yyyy as elsewhere in the file, found <5 that are none"),
    "a month first": (DEATHS + "1000008,0,12/31/2004\n", "line 4"),
    "a year of two digits": (DEATHS + "1000008,0,01/02/04\n", "column date_of_death, line 4"),
    "a time": (DEATHS.replace("31/01/2001", "2001-01-31 10:30:00"), "column date_of_death, line 2"),
    "a word": (DEATHS.replace("1000005,0", "1000005,first"), "column ins_index, line 3: expected whole numbers, found <5 values"),
    "a short line": (DEATHS + "1000008,0\n", "line 4: expected 3 fields, as in the header, found 2"),
    "a blank line": (DEATHS + "\n1000008,0,01/02/2004\n", "line 4"),
    "an identifier of text": (DEATHS + "1.2E+06,0,01/02/2004\n", "column eid: expected whole numbers, digits only, found 1 others, first at line 4"),
    "no identifier": (DEATHS + ",0,01/02/2004\n", "column eid: expected an identifier in each row, found 1 others, first at line 4"),
    "a column twice": ("eid,ins_index,date_of_death,ins_index\n1000003,0,01/02/2004,0\n", "found ins_index twice"),
    "a name that is taken": ("eid,ins_index,date_of_death,row\n1000003,0,01/02/2004,0\n", "found row twice, or a name that is taken"),
    "a quote within": ('eid,ins_index,source,date_of_death\n1000003,0,5" nail,01/02/2004\n1000005,0,6",01/02/2004\n', "a quote within a cell"),
    "an open quote": ('eid,ins_index,source,date_of_death\n1000003,0,"nail,01/02/2004\n', "expected a closing quote"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_place_and_without_its_value(case, tmp_path):
    text, message = BAD[case]
    (tmp_path / "death.csv").write_text(text)
    with pytest.raises(TableError) as caught:
        read([tmp_path / "death.csv"], "death", tmp_path)
    assert message in str(caught.value) and str(caught.value).startswith("death.csv")
    assert not EID_PATTERN.search(str(caught.value)) and str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "records").iterdir()) == []


def test_records_of_another_application_are_refused_and_few_or_partial_ones_are_not(tmp_path):
    rng = np.random.default_rng(0)
    everybody, other = (rng.choice(np.arange(1_000_000, 6_100_000), 20_000, replace=False) for _ in range(2))
    part = np.sort(everybody[:200])  # a hundredth of the cohort

    def deaths(people, name):
        (tmp_path / name).write_text(
            "eid,ins_index,date_of_death\n" + "".join(f"{eid},0,2012-05-01\n" for eid in people)
        )
        return [tmp_path / name]

    assert len(np.intersect1d(everybody, other)) > 50  # by chance
    with pytest.raises(
        TableError, match="d.csv: expected records of the participants.*Identifiers differ"
    ) as caught:
        read_records(deaths(other, "d.csv"), "death", np.sort(everybody), tmp_path / "out.parquet")
    assert not EID_PATTERN.search(str(caught.value))
    of_all = read_records(deaths(everybody[::-12], "all.csv"), "death", part, tmp_path / "a.parquet")
    assert of_all.n_people == len(np.intersect1d(everybody[::-12], part)) < 20 and of_all.n_strangers > 1600
    none = read_records(deaths(everybody[5000:5010], "few.csv"), "death", part, tmp_path / "b.parquet")
    assert (none.n_rows, none.n_left_out, pl.read_parquet(tmp_path / "b.parquet").height) == (0, 10, 0)


def test_a_damaged_file_of_several_leaves_the_earlier_table_alone(tmp_path):
    table = draw_table("death")
    good = portal(table, tmp_path / "a.txt")
    read([good], "death", tmp_path)
    before = (tmp_path / "records" / "out.parquet").read_bytes()
    (tmp_path / "b.csv").write_text(BAD["both ways"][0])
    with pytest.raises(TableError, match=r"b\.csv"):
        read([good, tmp_path / "b.csv"], "death", tmp_path)
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["out.parquet"]
    assert (tmp_path / "records" / "out.parquet").read_bytes() == before


def test_files_are_told_apart_and_others_refused(tmp_path):
    files = [
        platform(draw_table(kind), tmp_path / f"x{i}.csv", f"{kind}.")
        for i, kind in enumerate(reversed(HEADERS))
    ]
    assert {kind: len(paths) for kind, paths in records_by_kind(files).items()} == dict.fromkeys(RECORDS, 1)
    assert list(records_by_kind(files)) == list(RECORDS)
    (tmp_path / "t.csv").write_text("eid,31-0.0\n1,2\n")
    with pytest.raises(
        TableError, match="t.csv: expected one of the tables hesin, .*gp_registrations, found table"
    ):
        records_by_kind([tmp_path / "t.csv"])
    with pytest.raises(TableError, match="nothing, since it is not there"):
        records_by_kind([tmp_path / "nowhere.csv"])
    platform(draw_table("hesin_diag").drop(columns=["level", "diag_icd9"]), tmp_path / "short.csv")
    with pytest.raises(
        TableError, match="short.csv: expected the columns of hesin_diag, found no diag_icd9, level"
    ):
        records_by_kind([tmp_path / "short.csv"])


# Events, compared with pandas


def hospital_by_pandas(own: pd.DataFrame, hesin: pd.DataFrame, dates: list[str]) -> pd.DataFrame:
    "Dates of hospital events, found row by row in another way than the package does."
    stays = hesin.drop_duplicates(["row", "ins_index"]).set_index(["row", "ins_index"])
    rows = []
    for event in own.to_dict("records"):
        key = (event["row"], event["ins_index"])
        stay = stays.loc[key].to_dict() if key in stays.index else {}
        known = {**stay, **{name: event[name] for name in dates if name in event}}
        used = next((name for name in dates if pd.notna(known.get(name))), None)
        rows.append({**event, "date": known[used].date() if used else None, "date_from": used})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("kind", ["diagnoses", "operations"])
def test_hospital_events_have_the_date_that_pandas_finds(kind, tmp_path):
    own_kind, codes = {"diagnoses": ("hesin_diag", ["diag_icd10", "diag_icd9"]), "operations": ("hesin_oper", ["oper4", "oper3"])}[kind]  # fmt: skip
    tables = {
        name: draw_table(name, 150, seed=5).sample(frac=1, random_state=1) for name in ("hesin", own_kind)
    }
    scans, frames = {}, {}
    for name, table in tables.items():
        if name == "hesin":
            table.loc[table["ins_index"] == 3, [name for name in table if name in DATES]] = pd.NaT
        read([portal(table, tmp_path / f"{name}.txt")], name, tmp_path, f"{name}.parquet")
        scans[name] = pl.scan_parquet(tmp_path / "records" / f"{name}.parquet")
        frames[name] = golden(table).to_pandas()
        for column in DATES.intersection(frames[name].columns):
            frames[name][column] = pd.to_datetime(frames[name][column])
    dates = [*(["opdate"] if kind == "operations" else []), "epistart", "admidate", "epiend", "disdate"]
    expected = hospital_by_pandas(frames[own_kind], frames["hesin"], dates)
    found = events_of(scans, kind).collect()
    assert found.columns == ["row", "date", "code", "vocabulary", "source", "level", "date_from", "kind"]
    start = 0
    for code, vocabulary in zip(
        codes, {"diagnoses": ["ICD10", "ICD9"], "operations": ["OPCS4", "OPCS3"]}[kind], strict=True
    ):
        mine = expected[expected[code].notna()]
        part = found[start : start + len(mine)]
        start += len(mine)
        assert part["row"].to_list() == mine["row"].tolist() and part["code"].to_list() == mine[code].tolist()
        assert part["date"].to_list() == [None if pd.isna(date) else date for date in mine["date"]]
        assert part["date_from"].to_list() == [None if pd.isna(name) else name for name in mine["date_from"]]
        assert part["level"].to_list() == [
            {1: "main", 2: "secondary", 3: "external"}.get(n) for n in mine["level"]
        ]
        assert set(part["vocabulary"]) == {vocabulary} and set(part["source"]) == {"hospital"}
    assert start == found.height
    assert set(found["date_from"]) >= {*dates[:-1], None}  # every way was needed
    empty = found.filter(pl.col("date").is_null())
    assert empty.height > 0 and set(empty["kind"]) == {"empty"}


def scan(text: str) -> pl.LazyFrame:
    "A small table of records from text; dates as yyyy-mm-dd."
    lines = [line.split() for line in text.strip().splitlines()]
    frame = pl.DataFrame({name: [None if cell == "-" else cell for cell in cells] for name, *cells in zip(*lines, strict=True)})  # fmt: skip
    types = {name: pl.Date if name in DATES else pl.Int32 if name in INTEGERS | {"row"} else pl.String for name in frame.columns}  # fmt: skip
    return frame.with_columns(pl.col(name).str.to_date() if kind == pl.Date else pl.col(name).cast(kind) for name, kind in types.items()).lazy()  # fmt: skip


def test_the_last_certificate_of_death_holds():
    death = scan("""row ins_index date_of_death
                    0 0 2010-01-01
                    0 1 2010-01-02
                    1 1 -
                    1 0 2011-01-01
                    2 0 2012-01-01
                    3 0 -""")  # fmt: skip
    causes = scan("""row ins_index arr_index level cause_icd10
                     0 0 0 1 R99
                     0 1 0 1 I219
                     0 1 1 2 E119
                     1 0 0 1 C61
                     4 0 0 1 J440""")  # fmt: skip
    found = events_of({"death": death, "death_cause": causes}, "deaths").collect()
    day = datetime.date
    assert found.select("row", "date", "code", "level", "kind").rows() == [
        (0, day(2010, 1, 2), "I219", "main", "present"), (0, day(2010, 1, 2), "E119", "secondary", "present"),
        (1, day(2011, 1, 1), "C61", "main", "present"), (2, day(2012, 1, 1), None, None, "present"),
        (3, None, None, None, "empty"), (4, None, "J440", "main", "empty"),
    ]  # fmt: skip
    assert found["vocabulary"].to_list() == ["ICD10", "ICD10", "ICD10", None, None, "ICD10"]


def test_special_dates_of_primary_care_keep_their_event_and_say_why():
    kinds = {"1900-01-01": "occurred_date_unknown", "1901-01-01": "occurred_date_unknown", "1902-02-02": "from_birth",
             "1903-03-03": "from_birth", "1909-09-09": "placeholder", "2037-07-07": "placeholder", "-": "empty",
             "1903-03-04": "present", "2007-07-07": "present"}  # fmt: skip
    lines = "\n".join(f"{i} 1 {date} G30.. {'XE0Uc' if i % 2 else '-'}" for i, date in enumerate(kinds))
    found = events_of(
        {"gp_clinical": scan("row data_provider event_dt read_2 read_3\n" + lines)}, "primary care"
    ).collect()
    read2 = found.filter(vocabulary="READ2")
    assert read2["kind"].to_list() == list(kinds.values()) and read2["row"].to_list() == list(range(9))
    assert [str(date) for date in read2["date"].drop_nulls()] == ["1903-03-04", "2007-07-07"]
    assert set(read2["date_from"][:6]) == {"event_dt"} and read2["date_from"][6] is None
    assert found.filter(vocabulary="CTV3")["row"].to_list() == [1, 3, 5, 7]
    assert set(found["source"]) == {"primary care"} and found["level"].null_count() == found.height


def test_each_code_of_a_prescription_is_an_event():
    scripts = scan("""row data_provider issue_date read_2 bnf_code dmd_code drug_name quantity
                      0 1 2001-01-01 bxd1. 02.12.04.00.00 - x 28
                      1 3 2002-01-01 - 0212000B0 317249006 y 56""")  # fmt: skip
    found = events_of({"gp_scripts": scripts}, "prescriptions").collect()
    assert found.select("row", "code", "vocabulary").rows() == [
        (0, "02.12.04.00.00", "BNF"), (1, "0212000B0", "BNF"), (1, "317249006", "DMD"), (0, "bxd1.", "READ2"),
    ]  # fmt: skip


# In a Biobank


def write_extract(folder):
    "A main table and records of everybody in it, as a folder is delivered."
    folder.mkdir()
    (folder / "t.csv").write_text("eid,31-0.0\n" + "".join(f"{eid},1\n" for eid in PEOPLE[::-1]))
    tables = {kind: draw_table(kind, 80, seed=2) for kind in HEADERS}
    for i, (kind, table) in enumerate(tables.items()):
        portal(table, folder / f"{kind}.txt") if i % 2 else platform(table, folder / f"{kind}.csv")
    return tables


def test_a_folder_is_ingested_with_its_records_and_those_of_withdrawn_people_are_never_given(tmp_path):
    tables = write_extract(tmp_path / "in")
    biobank = ingest(tmp_path / "in", tmp_path / "b")
    for kind, table in tables.items():
        assert biobank.records(kind).collect().equals(golden(table))
    assert biobank.manifest["not_read"] == [] and biobank.verify() == []
    n_events = biobank.events("primary care").collect().height
    (tmp_path / "w.csv").write_text(f"{PEOPLE[2]}\n")
    biobank.withdraw(tmp_path / "w.csv")
    again = Biobank.open(tmp_path / "b")
    for kind, table in tables.items():
        assert again.records(kind).collect().equals(golden(table[table["eid"] != PEOPLE[2]].assign()))
    for kind in ("diagnoses", "operations", "deaths", "primary care", "prescriptions"):
        rows = again.events(kind).select("row").collect()["row"]
        assert 2 not in rows and 3 in rows
    assert 0 < again.events("primary care").collect().height < n_events
    report = "\n".join(again.report())
    assert "records hesin: " in report and "of <5 people" in report and not EID_PATTERN.search(report)


def test_records_named_by_themselves_and_a_biobank_without(tmp_path):
    write_extract(tmp_path / "in")
    folder = tmp_path / "in"
    biobank = ingest(
        folder / "t.csv", tmp_path / "b", records=[folder / "death_cause.csv", folder / "death.txt"]
    )
    assert list(biobank.manifest["records"]) == ["death", "death_cause"]
    assert biobank.events("deaths").collect().height > 0
    with pytest.raises(StoreError, match="records 'hesin': .*found only death, death_cause"):
        biobank.records("hesin")
    without = ingest(folder / "t.csv", tmp_path / "c")
    with pytest.raises(StoreError, match="found none"):
        without.records("hesin")
    with pytest.raises(TableError, match="expected one of diagnoses"):
        without.events("illnesses")
    with pytest.raises(TableError, match="t.csv: expected one of the tables"):
        ingest(folder / "t.csv", tmp_path / "d", records=[folder / "t.csv"])
    assert list(tmp_path.glob("d*")) == []


def test_a_killed_ingest_goes_on_with_the_records_it_lacks(tmp_path, monkeypatch):
    write_extract(tmp_path / "in")
    done, whole = [], store.read_records

    def die_at_deaths(paths, kind, *options):
        if kind == "death" and not done:
            raise KeyboardInterrupt
        done.append(kind)
        return whole(paths, kind, *options)

    files = [tmp_path / "in" / name for name in ("gp_clinical.txt", "death.txt", "hesin_diag.txt")]
    monkeypatch.setattr(
        store,
        "read_records",
        lambda *given: die_at_deaths(*given) if given[1] != "hesin_diag" else whole(*given),
    )
    with pytest.raises(KeyboardInterrupt):
        ingest(tmp_path / "in" / "t.csv", tmp_path / "b", records=files)
    monkeypatch.setattr(store, "read_records", lambda *given: done.append(given[1]) or whole(*given))
    biobank = ingest(tmp_path / "in" / "t.csv", tmp_path / "b", records=files[:2])
    assert done == ["death", "gp_clinical"]  # hesin_diag was there, and is not wanted now
    assert sorted(path.name for path in (tmp_path / "b" / "records").iterdir()) == [
        "death.parquet",
        "gp_clinical.parquet",
    ]
    assert biobank.verify() == []


# Scale

MEASURE = """
import sys, threading, time
import numpy as np
from ukbmm.biobank.events import read_records
def held():
    "Memory of this process, in MB, without pages of files."
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024
def watch():
    while True:
        peak[0] = max(peak[0], held())
        time.sleep(0.02)
participants, peak = np.arange(1_000_000, 1_050_000), [0]
threading.Thread(target=watch, daemon=True).start()
summary = read_records([sys.argv[1]], "gp_clinical", participants, sys.argv[2])
print(peak[0], summary.n_rows)
"""


def write_many(path, n_rows, in_order):
    "Rows of primary care, quickly."
    rng = np.random.default_rng(0)
    eids = rng.integers(1_000_000, 1_050_000, n_rows)
    eids = np.sort(eids) if in_order else eids
    days = pl.Series(rng.integers(10_000, 18_000, n_rows)).cast(pl.Int32).cast(pl.Date)
    codes = pl.Series(["G30..", "XE0Uc", "246..", "22K.."]).gather(rng.integers(0, 4, n_rows))
    values = pl.Series(rng.normal(120, 10, n_rows).round(6)).cast(pl.String)
    none = pl.lit(None, pl.String)
    frame = pl.DataFrame(
        {"eid": eids, "data_provider": 3, "event_dt": days, "read_2": codes, "value1": values}
    )
    columns = HEADERS["gp_clinical"].split()
    frame = frame.with_columns(read_3=none, value2=pl.col("value1") + pl.lit(" mmHg seated"), value3=none)
    frame.select(columns).write_csv(path, separator="\t", date_format="%d/%m/%Y")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("in_order", [True, False])
def test_a_million_rows_are_read_in_bounded_memory(in_order, tmp_path):
    write_many(tmp_path / "many.txt", 1_000_000, in_order)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "many.txt"), str(tmp_path / "out.parquet")]
    settings = {**os.environ, "POLARS_MAX_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    peak, n_rows = map(int, done.stdout.split())
    assert n_rows == 1_000_000 and 50 < peak < 1200
    rows = pl.read_parquet(tmp_path / "out.parquet", columns=["row"])["row"]
    assert rows.len() == 1_000_000 and rows.is_sorted()


def test_an_unknown_table_and_no_file_are_refused_and_one_file_may_be_named_by_itself(tmp_path):
    path = portal(draw_table("death"), tmp_path / "death.txt")
    with pytest.raises(TableError, match="records 'deaths': expected one of hesin.*Did you mean 'death'"):
        read_records([path], "deaths", PEOPLE, tmp_path / "out.parquet")
    with pytest.raises(TableError, match="records 'death': expected at least one file, found none"):
        read_records([], "death", PEOPLE, tmp_path / "out.parquet")
    one = read_records(path, "death", PEOPLE, tmp_path / "one.parquet")
    assert vars(one) == vars(read_records([path], "death", PEOPLE, tmp_path / "two.parquet"))
