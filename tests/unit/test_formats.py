"One table is written in eight forms; each of them is read as the same table, to the byte."

import csv
import datetime
import gzip
import io

import numpy as np
import pandas as pd
import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank import formats as formats_module
from ukbmm.biobank.dictionary import Dictionary, Field
from ukbmm.biobank.formats import (
    FORMATS,
    TableWriter,
    format_of,
    header_names,
    r_program,
    unreadable_labels,
)
from ukbmm.biobank.names import parse_name
from ukbmm.biobank.store import ingest
from ukbmm.core import TableError, UkbmmError, file_sha256

TEXT, CHOICE = 990001, 990002  # fields of our own: free text, and a multiple choice with codes of text
OWN_FIELDS = f"""FieldID\tField\tValueType\tInstances\tArray\tCoding
{TEXT}\tFree text of our own\tText\t2\t1\t
"""
OWN_CODINGS = """Coding\tValue\tMeaning
13\t-1\tTime uncertain/unknown
13\t-3\tPreferred not to answer
19\tI10\tI10 Essential (primary) hypertension
19\tE119\tE11.9 Without complications
272\t1900-01-01\tDate is unknown
439\t1900-01-01\tTime is unknown
819\t1900-01-01\tCode has no event date
819\t1902-02-02\tCode has event date matching participant's date of birth
819\t2037-07-07\tCode has event date in the future
"""
CODES = {  # what is drawn from; codes that share a label are not among them
    "p31": [0, 1],
    "p54_i0": [11003, 11010],
    "p20116_i0": [-3, 0, 1, 2],
    "p22000": [-11, -1, 1, 95, 2000],
    "p40001_i0": ["I10", "E119", "C509"],
    "p20002_i0": [1065, 1473, 1111, 1220],
    "p20002_i3": [1065, 99999],
    "p20003_i0": [1140861958, 1140868226],
    "p6138_i0": [-7, -3, 1, 2, 6],
    "p41270": ["I10", "E119", "J459", "Z880"],
    "p20544": [-819, 1, 11, 16],
}
NUMBERS = {  # special values beside what is measured
    "p21003_i0": [],
    "p21003_i3": [],
    "p1160_i0": [-1, -3],
    "p1160_i2": [-1, -3],
    "p1070_i1": [-10, -1, -3],
    "p4080_i0_a0": [],
    "p4080_i0_a1": [],
    "p50_i0": [],
    "p189": [],  # two fields of one title
    "p22189": [],
    "p78_i0": [-1.25, -0.0, 1e-7, 123456789.125],
    "p22009_a1": [],
    "p22009_a2": [],
    "p20006_i0_a0": [-1.0, -3.0],
}
DATES = {
    "p53_i0": [],
    "p53_i1": [],
    "p130000": ["1900-01-01", "1901-01-01", "1902-02-02", "2037-07-07"],
    "p42000": ["1900-01-01"],
    "p41280_a0": [],
}
WORDS = ["unit 3, left", "Größe 7", "  spaces  ", "O'Brien", "a;b", "[1,2]", "漢", "x|y", "100%"]
QUOTES = ['he said "no, never", twice', "two\nlines", '"', "tab\there", "a\r\nb", '"quoted"']


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory) -> Dictionary:
    folder = tmp_path_factory.mktemp("dictionary")
    (folder / "fields.tsv").write_text(OWN_FIELDS)
    (folder / "codings.tsv").write_text(OWN_CODINGS)
    return Dictionary.builtin().overlay(folder / "fields.tsv", folder / "codings.tsv")


def with_gaps(rng, values: list, share: float = 0.2) -> list:
    return [
        None if gap else value for gap, value in zip(rng.random(len(values)) < share, values, strict=True)
    ]


def draw(rng, name: str, field: Field, n: int) -> list:
    "Values of one column, without gaps."
    if field.value_type == "categorical_multiple":
        sets = [rng.permutation(CODES[name])[: rng.integers(1, len(CODES[name]) + 1)] for _ in range(n)]
        return [one.tolist() for one in sets]
    if name in CODES:
        return rng.choice(np.array(CODES[name], dtype=object), n).tolist()
    if name in NUMBERS:
        numbers = (
            rng.normal(50, 40, n).round(3) if field.value_type == "continuous" else rng.integers(20, 200, n)
        )
        special = rng.choice([*NUMBERS[name], 77], n)
        return np.where(rng.random(n) < 0.3, special, numbers).astype(numbers.dtype).tolist()
    days = [datetime.date(2006, 3, 1) + datetime.timedelta(days=int(day)) for day in rng.integers(0, 5000, n)]
    if name in DATES:
        special = [datetime.date.fromisoformat(day) for day in DATES[name]]
        return [special[i % len(special)] if special and i % 3 == 0 else day for i, day in enumerate(days)]
    noon, half = datetime.time(12, 5, 30), datetime.timedelta(milliseconds=500)
    return [datetime.datetime.combine(day, noon) + half * (i % 2) for i, day in enumerate(days)]


def a_table(dictionary: Dictionary, words: list[str], n: int = 200) -> tuple[np.ndarray, pl.DataFrame, dict]:
    "Identifiers out of order, typed columns of every kind, and their fields."
    rng = np.random.default_rng(7)
    names = [*NUMBERS, *CODES, *DATES, "p3166_i0_a0", f"p{TEXT}_i0", f"p{TEXT}_i1"]
    fields = {name: dictionary[parse_name(name)[0].field_id] for name in names}
    values = {}
    for name, field in fields.items():
        full = rng.choice(words, n).tolist() if field.field_id == TEXT else draw(rng, name, field, n)
        dtype = pl.List(field.dtype) if field.value_type == "categorical_multiple" else field.dtype
        values[name] = pl.Series(name, with_gaps(rng, full), dtype=dtype)
    frame = pl.DataFrame(values)
    empty = pl.Series([i == 5 for i in range(n)])  # somebody without any value
    frame = frame.with_columns(pl.when(~empty).then(pl.all()))
    return rng.permutation(np.arange(1_000_000, 1_000_000 + 7 * n, 7)), frame, fields


SIZES = {"p20002_i0": 4, "p20002_i3": 3, "p20003_i0": 2, "p6138_i0": 5, "p41270": 4, "p20544": 4}


def write(folder, format, dictionary, table, packed=False):
    "Write a table in three chunks of different size."
    eids, frame, fields = table
    with TableWriter(folder, format, fields, dictionary, SIZES, packed) as writer:
        for start, stop in ((0, 1), (1, 120), (120, None)):
            writer.write(eids[start:stop], frame[start:stop])
    return writer.path


def read(path, folder, coding="auto"):
    "Ingest a file: the participants, the table and the hashes of the table's files."
    (folder / "fields.tsv").write_text(OWN_FIELDS)
    (folder / "codings.tsv").write_text(OWN_CODINGS)
    biobank = ingest(path, folder / "biobank", fields=folder / "fields.tsv", codings=folder / "codings.tsv",
                     coding=coding)  # fmt: skip
    hashes = {part.name: file_sha256(part) for part in sorted((biobank.path / "tables").iterdir())}
    eids = pl.read_parquet(biobank.path / "participants.parquet")["eid"].to_list()
    return eids, biobank.read(biobank.columns), hashes


def check(table, found) -> None:
    "Compare what was read with what was written: participants, names, types and values."
    eids, frame, _ = table
    order = np.argsort(eids)
    assert found[0] == eids[order].tolist()
    assert found[1].schema == frame.schema
    assert found[1].equals(frame[order])


@pytest.fixture(scope="module")
def table(dictionary):
    return a_table(dictionary, WORDS)


@pytest.fixture(scope="module")
def reference(dictionary, table, tmp_path_factory):
    "Hashes of the tables that RAP's raw export becomes; its values are compared with what was written."
    folder = tmp_path_factory.mktemp("reference")
    found = read(write(folder, "rap-raw", dictionary, table), folder)
    check(table, found)
    return found[2]


def test_the_table_has_everything_that_can_go_wrong_and_nothing_that_must(dictionary, table):
    _, frame, fields = table
    kinds = {field.value_type for field in fields.values()}
    assert kinds == {
        "integer",
        "continuous",
        "categorical_single",
        "categorical_multiple",
        "date",
        "time",
        "text",
    }
    assert {
        bool(field.text_codes) for field in fields.values() if field.value_type == "categorical_multiple"
    } == {True, False}
    assert (
        (frame["p1160_i0"] == -3).any() and (frame["p1070_i1"] == -10).any() and (frame["p78_i0"] < 0).any()
    )
    assert (frame["p130000"] == datetime.date(2037, 7, 7)).any() and frame.null_count().row(0) > (
        0,
    ) * frame.width
    lost = unreadable_labels(fields, dictionary)
    assert not [name for name, values in lost.items() if set(map(str, CODES.get(name, []))) & set(values)]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_form_is_read_to_the_same_bytes(tmp_path, dictionary, table, reference, format, packed):
    path = write(tmp_path, format, dictionary, table, packed)
    assert path.name.endswith(".gz") == packed
    found = read(path, tmp_path)
    check(table, found)
    assert found[2] == reference


@pytest.mark.parametrize("format", [name for name, form in FORMATS.items() if form.quotes != "never"])
def test_forms_with_quotes_hold_quotes_and_line_breaks(tmp_path, dictionary, format):
    table = a_table(dictionary, [*WORDS, *QUOTES], 150)
    check(table, read(write(tmp_path, format, dictionary, table), tmp_path))


@pytest.mark.parametrize(
    "words",
    [["plain", '5" nail', 'a 3" pipe, 2" wide'], ["plain", '"quoted"', "O'Brien"], ["plain", '"half quoted']],
    ids=["within", "around", "at the start"],
)
@pytest.mark.parametrize("format", ["ukbconv-tab", "ukbconv-txt"])
def test_forms_without_quotes_hold_quotes_as_they_are(tmp_path, dictionary, format, words):
    table = a_table(dictionary, words, 150)
    check(table, read(write(tmp_path, format, dictionary, table), tmp_path))


def one_column(dictionary, name: str, values: list):
    "A table of one column and three people."
    field = dictionary[parse_name(name)[0].field_id]
    dtype = pl.List(field.dtype) if field.value_type == "categorical_multiple" else field.dtype
    return (
        np.array([1_000_001, 1_000_002, 1_000_003]),
        pl.DataFrame({name: values}, schema={name: dtype}),
        {name: field},
    )


@pytest.mark.parametrize(
    "name, values",
    [("p20002_i0", [[1065, 1473], [1111], None]), ("p41270", [["I10", "E119"], ["I10"], None])],
)
def test_a_joined_cell_under_the_name_of_ukbconv_is_a_list(tmp_path, dictionary, name, values):
    table = one_column(dictionary, name, values)
    check(table, read(write(tmp_path, "ukb-format", dictionary, table), tmp_path))


def test_the_label_of_a_time_is_read(tmp_path, dictionary):
    values = [datetime.datetime(1900, 1, 1), datetime.datetime(2009, 3, 1, 12, 0, 30), None]
    table = one_column(dictionary, "p3166_i0_a0", values)
    path = write(tmp_path, "rap-labels", dictionary, table)
    assert path.read_text().splitlines()[1] == "1000001,Time is unknown"
    check(table, read(path, tmp_path))


def test_the_labels_of_codes_of_text_are_read_where_it_is_said_that_there_are_labels(tmp_path, dictionary):
    table = one_column(dictionary, "p40001_i0", ["I10", "E119", None])
    path = write(tmp_path, "rap-labels", dictionary, table)
    assert path.read_text().splitlines()[1] == "1000001,I10 Essential (primary) hypertension"
    check(table, read(path, tmp_path, "labels"))


# what the forms look like


COLUMNS = ("p31", "p50_i0", "p1160_i0", "p53_i0", "p20002_i0", "p41270", "p4136_i0", "p3166_i0_a0")
GOLDEN = {
    "ukbconv-csv": """\
"eid","31-0.0","50-0.0","1160-0.0","53-0.0","20002-0.0","20002-0.1","41270-0.0","41270-0.1","4136-0.0","3166-0.0"
"1000001","1","170.5","-3","2008-03-01","1065","1473","I10","","5"" nail, é","2009-03-01T12:00:30"
"1000002","0","181","","","","","E119","I10","",""
""",
    "ukbconv-tab": """\
f.eid f.31.0.0 f.50.0.0 f.1160.0.0 f.53.0.0 f.20002.0.0 f.20002.0.1 f.41270.0.0 f.41270.0.1 f.4136.0.0 f.3166.0.0
1000001 1 170.5 -3 2008-03-01 1065 1473 I10 NA 5"_nail,_é 2009-03-01T12:00:30
1000002 0 181 NA NA NA NA E119 I10 NA NA
""",
    "ukbconv-txt": """\
eid 31-0.0 50-0.0 1160-0.0 53-0.0 20002-0.0 20002-0.1 41270-0.0 41270-0.1 4136-0.0 3166-0.0
1000001 1 170.5 -3 2008-03-01 1065 1473 I10  5"_nail,_é 2009-03-01T12:00:30
1000002 0 181     E119 I10
""",
    "ukb-format": """\
eid,31-0.0,50-0.0,1160-0.0,53-0.0,20002-0.0,41270-0.0,4136-0.0,3166-0.0
1000001,1,170.5,-3,2008-03-01,1065|1473,I10,"5"" nail, é",2009-03-01 12:00:30
1000002,0,181.0,,,,E119|I10,,
""",
    "rap-raw": """\
eid,p31,p50_i0,p1160_i0,p53_i0,p20002_i0,p41270,p4136_i0,p3166_i0_a0
1000001,1,170.5,-3,2008-03-01,1065|1473,I10,"5"" nail, é",2009-03-01 12:00:30
1000002,0,181.0,,,,E119|I10,,
""",
    "rap-prefixed": """\
participant.eid,participant.p31,participant.p50_i0,participant.p1160_i0,participant.p53_i0,participant.p20002_i0,\
participant.p41270,participant.p4136_i0,participant.p3166_i0_a0
1000001,1,170.5,-3,2008-03-01,"[1065,1473]","[""I10""]","5"" nail, é",2009-03-01 12:00:30
1000002,0,181.0,,,,"[""E119"",""I10""]",,
""",
    "rap-labels": """\
eid,p31,p50_i0,p1160_i0,p53_i0,p20002_i0,p41270,p4136_i0,p3166_i0_a0
1000001,Male,170.5,Prefer not to answer,2008-03-01,hypertension|high cholesterol,\
I10 Essential (primary) hypertension,"5"" nail, é",2009-03-01 12:00:30
1000002,Female,181.0,,,,E11.9 Without complications|I10 Essential (primary) hypertension,,
""",
    "rap-titles": """\
Participant ID,Sex,Standing height | Instance 0,Sleep duration | Instance 0,Date of attending assessment centre | Instance 0,\
"Non-cancer illness code, self-reported | Instance 0",Diagnoses - ICD10,Arterial pulse-wave stiffness device ID | Instance 0,\
Time blood sample collected | Instance 0 | Array 0
1000001,Male,170.5,Prefer not to answer,2008-03-01,hypertension|high cholesterol,\
I10 Essential (primary) hypertension,"5"" nail, é",2009-03-01 12:00:30
1000002,Female,181.0,,,,E11.9 Without complications|I10 Essential (primary) hypertension,,
""",
}  # in the tab-separated ones a space stands for a tab and _ for a space


def golden_table(dictionary):
    fields = {name: dictionary[parse_name(name)[0].field_id] for name in COLUMNS}
    day = datetime.date(2008, 3, 1)
    rows = [(1, 170.5, -3, day, [1065, 1473], ["I10"], '5" nail, é', datetime.datetime(2009, 3, 1, 12, 0, 30)),
            (0, 181.0, None, None, None, ["E119", "I10"], None, None)]  # fmt: skip
    types = {
        n: pl.List(f.dtype) if f.value_type == "categorical_multiple" else f.dtype for n, f in fields.items()
    }
    return np.array([1_000_001, 1_000_002]), pl.DataFrame(rows, schema=types, orient="row"), fields


@pytest.mark.parametrize("format", FORMATS)
def test_each_form_looks_as_written_by_hand(tmp_path, dictionary, format):
    eids, frame, fields = golden_table(dictionary)
    with TableWriter(tmp_path, format, fields, dictionary, {"p20002_i0": 2, "p41270": 2}) as writer:
        writer.write(eids, frame)
    text = GOLDEN[format]
    if FORMATS[format].separator == "\t":
        text = text.replace(" ", "\t").replace("_", " ")
    assert writer.path.read_bytes().decode() == text
    assert writer.n_rows == 2


def test_the_program_beside_a_tab_is_as_ukbconv_writes_it(tmp_path, dictionary):
    eids, frame, fields = golden_table(dictionary)
    with TableWriter(
        tmp_path, "ukbconv-tab", fields, dictionary, {"p20002_i0": 2, "p41270": 2}, packed=True
    ) as writer:
        writer.write(eids, frame)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ukb40000.r", "ukb40000.tab.gz"]
    lines = (tmp_path / "ukb40000.r").read_text().splitlines()
    assert lines[1:5] == [
        'bd <- read.table("ukb40000.tab.gz", header=TRUE, sep="\\t")',
        "lvl.0009 <- c(0,1)",
        'lbl.0009 <- c("Female","Male")',
        "bd$f.31.0.0 <- ordered(bd$f.31.0.0, levels=lvl.0009, labels=lbl.0009)",
    ]
    assert lines[5:8] == [
        "lvl.100291 <- c(-3,-1)",
        'lbl.100291 <- c("Prefer not to answer","Do not know")',
        "bd$f.53.0.0 <- as.Date(bd$f.53.0.0)",
    ]
    assert lines[-6:] == [
        'lvl.0019 <- c("E119","I10")',
        'lbl.0019 <- c("E11.9 Without complications","I10 Essential (primary) hypertension")',
        "bd$f.41270.0.0 <- ordered(bd$f.41270.0.0, levels=lvl.0019, labels=lbl.0019)",
        "bd$f.41270.0.1 <- ordered(bd$f.41270.0.1, levels=lvl.0019, labels=lbl.0019)",
        'lvl.0439 <- c("1900-01-01")',
        'lbl.0439 <- c("Time is unknown")',
    ]
    assert r_program("x.tab", {"p31": fields["p31"]}, dictionary, {}).count("lvl.0009 <-") == 1


def test_every_title_is_raps_own(dictionary):
    table = pl.read_csv(shared_data("ukb_metadata/rap_variables.csv.gz"), infer_schema=False).filter(
        pl.col("id") != "eid"
    )
    names = [name for name in table["id"] if parse_name(name) and parse_name(name)[0].field_id in dictionary]
    fields = {name: dictionary[parse_name(name)[0].field_id] for name in names}
    spelled = dict(zip(names, header_names(FORMATS["rap-titles"], fields, {})[1:], strict=True))
    theirs = dict(table.iter_rows())
    other = [name for name in names if spelled[name] != theirs[name]]
    assert len(names) > 25_000 and len(other) < 0.05 * len(names)  # titles change between releases


@pytest.mark.parametrize("format", ["ukbconv-csv", "ukb-format", "rap-prefixed"])
def test_a_file_with_quotes_is_what_pandas_reads(tmp_path, dictionary, format):
    eids, frame, fields = table = a_table(dictionary, [*WORDS, *QUOTES], 60)
    path = write(tmp_path, format, dictionary, table)
    found = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert found.iloc[:, 0].tolist() == [str(eid) for eid in eids]
    name = header_names(FORMATS[format], {f"p{TEXT}_i0": fields[f"p{TEXT}_i0"]}, {})[1]
    assert found[name].tolist() == frame[f"p{TEXT}_i0"].fill_null("").to_list()
    name = header_names(FORMATS[format], {"p78_i0": fields["p78_i0"]}, {})[1]
    assert [float(text) if text else None for text in found[name]] == frame["p78_i0"].to_list()


def test_lines_of_ragged_text_end_after_their_last_value(tmp_path, dictionary, table):
    even, ragged = (
        write(tmp_path / form, form, dictionary, table).read_text() for form in ("ukbconv-tab", "ukbconv-txt")
    )
    expected = [line.replace("NA", "").rstrip("\t") for line in even.splitlines()[1:]]
    assert ragged.splitlines()[1:] == expected
    assert (
        len({line.count("\t") for line in expected}) > 3 and "\t" not in expected[5]
    )  # somebody without a value


# the writer


@pytest.mark.parametrize("format", ["ukbconv-txt", "rap-labels"])
def test_slices_of_any_size_give_the_same_bytes(tmp_path, dictionary, table, monkeypatch, format):
    whole = write(tmp_path / "whole", format, dictionary, table).read_bytes()
    monkeypatch.setattr(formats_module, "CELLS", 200)  # a few rows at a time
    assert write(tmp_path / "sliced", format, dictionary, table).read_bytes() == whole


def test_packed_files_hold_the_same_and_do_not_depend_on_the_time(tmp_path, dictionary, table):
    plain = write(tmp_path / "plain", "rap-raw", dictionary, table)
    packed = [write(tmp_path / name, "rap-raw", dictionary, table, packed=True) for name in ("one", "two")]
    assert packed[0].name == "participant.csv.gz" and packed[0].read_bytes() == packed[1].read_bytes()
    assert gzip.decompress(packed[0].read_bytes()) == plain.read_bytes()
    assert packed[0].read_bytes()[4:8] == b"\0\0\0\0"  # no time of writing


def test_positions_come_from_the_field_where_none_are_given(tmp_path, dictionary):
    field = dictionary[6138]
    with TableWriter(tmp_path, "ukbconv-csv", {"p6138_i0": field}, dictionary, name="ukb777") as writer:
        pass
    header = next(csv.reader(io.StringIO(writer.path.read_text())))
    assert writer.path.name == "ukb777.csv" and header[1:] == [
        f"6138-0.{i}" for i in range(field.array_max + 1)
    ]


BAD = {
    "a column too few": (lambda frame: frame.drop("p31"), "found 7 columns, other: p31"),
    "a column too many": (lambda frame: frame.with_columns(p7=1), "found 9 columns, other: p7"),
    "another type": (
        lambda frame: frame.with_columns(pl.col("p1160_i0").cast(pl.Int32)),
        "column p1160_i0: expected the type Int64",
    ),
    "a code for a list": (
        lambda frame: frame.with_columns(pl.col("p41270").list.first()),
        "column p41270: expected the type List",
    ),
    "too many answers": (
        lambda frame: frame.with_columns(p41270=pl.lit(["I10", "E119", "C509"])),
        "expected 2 answers at most",
    ),
    "too few identifiers": (lambda frame: pl.concat([frame, frame]), "2 identifiers, 4 rows"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_a_chunk_that_is_not_what_was_announced_is_refused_and_leaves_nothing(
    tmp_path, dictionary, what, packed
):
    change, message = BAD[what]
    eids, frame, fields = golden_table(dictionary)
    with pytest.raises(TableError, match=message):
        with TableWriter(
            tmp_path, "ukbconv-csv", fields, dictionary, {"p20002_i0": 2, "p41270": 2}, packed
        ) as writer:
            writer.write(eids, frame)
            writer.write(eids, change(frame))
    assert list(tmp_path.iterdir()) == []


def test_answers_without_a_position_are_refused(tmp_path, dictionary):
    eids, frame, fields = one_column(dictionary, "p20002_i0", [[1065], None, None])
    with pytest.raises(TableError, match="expected 0 answers at most, as in array_sizes, found 1"):
        with TableWriter(tmp_path, "ukbconv-csv", fields, dictionary, {"p20002_i0": 0}) as writer:
            writer.write(eids, frame)


@pytest.mark.parametrize("word", ["two\nlines", "a\tb", "a\rb"])
def test_a_form_without_quotes_refuses_what_it_can_not_hold(tmp_path, dictionary, word):
    table = one_column(dictionary, "p4136_i0", [word, None, "x"])
    for format in ("ukbconv-tab", "ukbconv-txt"):
        with pytest.raises(
            TableError, match="column p4136_i0: expected text that ukbconv (r|txt) can hold"
        ) as refused:
            write(tmp_path, format, dictionary, table)
        assert word not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_nothing_and_an_old_file_as_it_was(tmp_path, dictionary):
    eids, frame, fields = golden_table(dictionary)
    (tmp_path / "ukb40000.tab").write_text("old")
    with (
        pytest.raises(KeyboardInterrupt),
        TableWriter(tmp_path, "ukbconv-tab", fields, dictionary, {"p20002_i0": 2, "p41270": 2}) as writer,
    ):
        writer.write(eids, frame)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["ukb40000.tab"] and (
        tmp_path / "ukb40000.tab"
    ).read_text() == "old"


def test_an_unknown_form_is_refused_with_the_nearest(tmp_path, dictionary):
    with pytest.raises(UkbmmError, match="Did you mean 'rap-titles'"):
        TableWriter(tmp_path, "rap-title", {}, dictionary)
    assert format_of("rap-raw") is FORMATS["rap-raw"]


# what can't be read back


SHARED = [
    "p31",
    "p21001_i0",
    "p23104_i0",
    "p189",
    "p22189",
    "p50_i0",
    "p396_i0_a1",
]  # titles that other fields have, too


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_beside_titles_lies_a_list_of_field_names(tmp_path, dictionary, packed):
    fields = {name: dictionary[parse_name(name)[0].field_id] for name in SHARED}
    frame = pl.DataFrame(
        {name: [i, i + 1] for i, name in enumerate(SHARED)}, schema={name: field.dtype for name, field in fields.items()}
    ).with_columns(p31=pl.Series([1, 0], dtype=pl.Int32))  # fmt: skip
    for format in FORMATS:
        with TableWriter(tmp_path / format, format, fields, dictionary, packed=packed) as writer:
            writer.write(np.array([1_000_001, 1_000_002]), frame)
        assert (tmp_path / format / "participant.field_names.txt").exists() == (format == "rap-titles")
    path = tmp_path / "rap-titles" / f"participant.csv{'.gz' if packed else ''}"
    assert (path.parent / "participant.field_names.txt").read_text() == "\n".join(["eid", *SHARED, ""])
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    header, *rows = csv.reader(io.StringIO(data.decode()))
    assert header == ["Participant ID", "Sex", *["Body mass index (BMI) | Instance 0"] * 2, *["Townsend deprivation index at recruitment"] * 2,
                      "Standing height | Instance 0", "Number of columns displayed in round | Instance 0 | Array 1"]  # fmt: skip
    assert rows == [
        ["1000001", "Male", "1.0", "2.0", "3.0", "4.0", "5.0", "6"],
        ["1000002", "Female", "2.0", "3.0", "4.0", "5.0", "6.0", "7"],
    ]
    biobank = ingest(path, tmp_path / "biobank")
    assert biobank.columns == SHARED and biobank.read(SHARED).equals(frame)


def test_an_interrupted_writer_leaves_no_list_of_field_names(tmp_path, dictionary):
    with (
        pytest.raises(KeyboardInterrupt),
        TableWriter(tmp_path, "rap-titles", {"p31": dictionary[31]}, dictionary),
    ):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_listed_are_those_that_a_reader_gets_wrong(tmp_path):
    codings = "Coding\tValue\tMeaning\n5\t1\tone\n5\t2\tseveral\n5\t3\tseveral\n5\t4\t6\n5\t5\tNA\n5\t7\ta|b\n9\t0\tFemale\n9\t1\tMale\n"
    own = f"FieldID\tField\tValueType\tCoding\n{TEXT}\tNumber\tInteger\t5\n{CHOICE}\tCodes\tCategorical multiple\t5\n"
    (tmp_path / "codings.tsv").write_text(codings)
    (tmp_path / "fields.tsv").write_text(own)
    dictionary = Dictionary.builtin().overlay(tmp_path / "fields.tsv", tmp_path / "codings.tsv")
    fields = {"p31": dictionary[31], f"p{TEXT}": dictionary[TEXT], f"p{CHOICE}": dictionary[CHOICE]}
    listed = unreadable_labels(fields, dictionary)
    assert listed == {f"p{TEXT}": ["2", "3", "5", "6"], f"p{CHOICE}": ["2", "3", "5", "6", "7"]}
    values = list(range(1, 9))
    frame = pl.DataFrame({"p31": [i % 2 for i in values], f"p{TEXT}": values, f"p{CHOICE}": [[i] for i in values]},
                         schema={"p31": pl.Int32, f"p{TEXT}": pl.Int64, f"p{CHOICE}": pl.List(pl.Int32)})  # fmt: skip
    for name in (f"p{TEXT}", f"p{CHOICE}"):
        safe = frame.select("p31", name).filter(~pl.Series([str(i) in listed[name] for i in values]))
        with TableWriter(
            tmp_path / name, "rap-labels", {key: fields[key] for key in safe.columns}, dictionary
        ) as writer:
            writer.write(np.arange(1_000_001, 1_000_001 + safe.height), safe)
        biobank = ingest(
            writer.path,
            tmp_path / f"{name}.biobank",
            fields=tmp_path / "fields.tsv",
            codings=tmp_path / "codings.tsv",
        )
        assert biobank.read(safe.columns).equals(safe)


def test_labels_of_the_shipped_codings_that_are_lost_are_few_and_known():
    shipped = Dictionary.builtin()
    fields = {f"p{field_id}": field for field_id, field in shipped.fields.items()}
    lost = unreadable_labels(fields, shipped)
    assert lost["p20002"] == ["1260", "1437"]
    for name, values in lost.items():  # independent: count labels with pandas
        labels = pd.Series(shipped.labels[fields[name].coding])
        of_dates = fields[name].value_type in (
            "date",
            "time",
        )  # the last of several dates is read for their label
        several = set(labels[labels.duplicated(keep="last" if of_dates else False)].index)
        assert several <= set(values), name
    assert "p31" not in lost and "p1160" not in lost
