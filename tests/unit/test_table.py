"A text table becomes typed columns in order of the participants, or an error says where it is wrong."

import csv
import datetime
import gzip
import io
import json
import re
import traceback

import numpy as np
import pandas as pd
import polars as pl
import pytest
from memory import peak_mib
from shared_data import shared_data

from ukbmm.biobank import lines
from ukbmm.biobank import table as table_module
from ukbmm.biobank.dictionary import Dictionary, Field
from ukbmm.biobank.lines import read_layout, read_lines
from ukbmm.biobank.store import ingest
from ukbmm.biobank.table import read_table
from ukbmm.core import TableError

D = Dictionary.builtin()
TEXT = 990001  # a field of free text
OWN = Dictionary({**D.fields, TEXT: Field(TEXT, "Free text", "text", instanced=True)})
NAMES = [
    "eid",
    "31-0.0",
    "21003-0.0",
    "21001-0.0",
    "22189-0.0",
    "53-0.0",
    "40001-0.0",
    f"{TEXT}-0.0",
    "20002-0.0",
    "20002-0.1",
]


def read(tmp_path, data, **options):
    "The summary, identifiers and columns of a table given as text or bytes."
    path = tmp_path / "a.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    summary, eids = read_table(path, OWN, tmp_path / "out" / "t", **options)
    parts = [pl.read_parquet(tmp_path / "out" / part) for part in summary.parts]
    return summary, eids.tolist(), pl.concat(parts, how="horizontal")


def random_rows(n, seed):
    "Rows of text cells as an extract holds them, with gaps, quotes, delimiters and line breaks."
    rng = np.random.default_rng(seed)
    words = [
        "plain",
        "a, b",
        'he said "no, never", twice',
        "two\nlines",
        "tab\there",
        "  spaces  ",
        "é ü 漢",
        '"',
        ",",
        "",
    ]
    cells = {
        "eid": rng.permutation(np.arange(1_000_000, 1_000_000 + 7 * n, 7)).astype(str),
        "31-0.0": rng.choice(["0", "1", "", "NA"], n),
        "21003-0.0": rng.choice(["40", "69", "", "NA", "-3"], n),
        "21001-0.0": np.where(rng.random(n) < 0.2, "", (rng.normal(27, 5, n)).astype(str)),
        "22189-0.0": rng.choice(["-1.25", "3e-1", "0", "NA", "12"], n),
        "53-0.0": rng.choice(["2006-03-13", "2010-02-28", "", "NA"], n),
        "40001-0.0": rng.choice(["I10", "E119", "", "NA"], n),
        f"{TEXT}-0.0": rng.choice(words, n),
        "20002-0.0": rng.choice(["1065", "1473", "", "NA"], n),
        "20002-0.1": rng.choice(["1111", ""], n),
    }
    return list(map(list, zip(*(cells[name].tolist() for name in NAMES), strict=True)))


def as_text(rows, delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL, bom=False):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([NAMES, *rows])
    return ("\ufeff" if bom else "").encode() + stream.getvalue().encode()


LAYOUTS = {
    "comma": {},
    "tab": {"delimiter": "\t"},
    "crlf": {"end": "\r\n"},
    "all quoted": {"quoting": csv.QUOTE_ALL},
    "byte order mark": {"bom": True},
    "all of it": {"delimiter": "\t", "end": "\r\n", "quoting": csv.QUOTE_ALL, "bom": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_table_is_read_as_pandas_reads_it(tmp_path, layout, seed):
    data = as_text(random_rows(300, seed), **LAYOUTS[layout])
    summary, eids, found = read(tmp_path, data)
    expected = pd.read_csv(
        io.BytesIO(data), sep=LAYOUTS[layout].get("delimiter", ","), dtype=str, keep_default_na=False,
        na_values=["", "NA"], encoding="utf-8-sig",
    )  # fmt: skip
    expected = expected.assign(eid=expected["eid"].astype(int)).sort_values("eid").reset_index(drop=True)
    assert eids == expected["eid"].tolist() and summary.n_rows == 300
    columns = {"p31": "31-0.0", "p21003_i0": "21003-0.0", "p21001_i0": "21001-0.0", "p22189": "22189-0.0"}
    for name, source in columns.items():
        numbers = expected[source].astype(float).to_numpy()
        assert np.array_equal(found[name].cast(pl.Float64).to_numpy(), numbers, equal_nan=True), name
    dates = [None if pd.isna(day) else datetime.date.fromisoformat(day) for day in expected["53-0.0"]]
    assert found["p53_i0"].to_list() == dates
    for name, source in {"p40001_i0": "40001-0.0", f"p{TEXT}_i0": f"{TEXT}-0.0"}.items():
        assert found[name].to_list() == [None if pd.isna(text) else text for text in expected[source]], name
    pieces = expected[["20002-0.0", "20002-0.1"]].to_numpy()
    lists = [[int(code) for code in row if not pd.isna(code)] or None for row in pieces]
    assert found["p20002_i0"].to_list() == lists


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 1 << 20])
def test_lines_are_the_same_whatever_the_chunk(tmp_path, chunk_bytes, monkeypatch):
    rows = random_rows(60, 3)
    monkeypatch.setattr(lines, "CHUNK", chunk_bytes)
    for number, options in enumerate(LAYOUTS.values()):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(as_text(rows, **options))
        layout = read_layout(path)
        name = next(name for name in layout.names if "eid" in name)
        assert read_lines(layout, name).eids.tolist() == [int(row[0]) for row in rows]


def test_types_come_from_the_dictionary_and_not_from_the_values(tmp_path):
    _, _, found = read(tmp_path, "eid,31-0.0,21001-0.0,40001-0.0,53-0.0,20002-0.0\n1000001,,20,100,NA,\n")
    assert found.schema == {
        "p31": pl.Int32, "p21001_i0": pl.Float64, "p40001_i0": pl.String, "p53_i0": pl.Date,
        "p20002_i0": pl.List(pl.Int32),
    }  # fmt: skip


@pytest.mark.parametrize("cell", ["[1065,1473]", "1065|1473", '["1065", "1473"]', "[1065, 1473]"])
@pytest.mark.parametrize("name", ["p20002_i0", "participant.p20002_i0"])
def test_a_multiple_choice_in_one_cell_is_a_list(tmp_path, cell, name):
    stream = io.StringIO()
    csv.writer(stream).writerows(
        [["eid", name, "p41270"], ["1000001", cell, '["I10","E119"]'], ["1000002", "", ""]]
    )
    _, _, found = read(tmp_path, stream.getvalue())
    assert found["p20002_i0"].to_list() == [[1065, 1473], None]
    assert found["p41270"].to_list() == [["I10", "E119"], None]


def test_a_multiple_choice_under_its_title_is_a_list(tmp_path):
    title = "Non-cancer illness code, self-reported | Instance 0"
    _, _, found = read(tmp_path, f'eid,"{title}"\n1000001,1065|1473\n')
    assert found["p20002_i0"].to_list() == [[1065, 1473]]


def test_an_empty_multiple_choice_is_missing(tmp_path):
    _, _, found = read(tmp_path, 'eid,p20002_i0\n1000001,[]\n1000002,"[1065]"\n')
    assert found["p20002_i0"].to_list() == [None, [1065]]


def test_whole_numbers_written_with_decimals_are_read_and_reported(tmp_path):
    summary, _, found = read(tmp_path, "eid,31-0.0,21003-0.0\n1000001,1.0,40\n1000002,,41.00\n1000003,0,NA\n")
    assert found["p31"].to_list() == [1, None, 0] and found["p31"].dtype == pl.Int32
    assert found["p21003_i0"].to_list() == [40, 41, None] and found["p21003_i0"].dtype == pl.Int64
    assert summary.decimals == ["21003-0.0", "31-0.0"]


def test_a_multiple_choice_over_columns_keeps_its_type_when_written_with_decimals(tmp_path):
    codes = pd.DataFrame({"eid": [1000001, 1000002, 1000003], "20002-0.0": [1065, None, None]})
    codes["20002-0.1"] = [1473, 1111, None]  # with gaps, pandas writes 1473.0
    text = codes.assign(**{"20002-0.2": [99999, 5, 7]}).to_csv(index=False)
    assert "1065.0,1473.0,99999\n" in text
    summary, _, found = read(tmp_path, text)
    assert found.schema == {"p20002_i0": pl.List(pl.Int32)}
    assert found["p20002_i0"].to_list() == [[1065, 1473, 99999], [1111, 5], [7]]
    assert summary.decimals == ["20002-0.0", "20002-0.1"]


def test_undefined_numbers_are_missing_and_infinite_ones_refused(tmp_path):
    _, _, found = read(tmp_path, "eid,21001-0.0,50-0.0\n1,NaN,170\n2,nan,171\n4,1e3,NaN\n5,-0.5,\n")
    assert found["p21001_i0"].to_list() == [None, None, 1000.0, -0.5]
    assert found["p50_i0"].to_list() == [170.0, 171.0, None, None]
    for text in ("inf", "-Inf", "infinity"):
        with pytest.raises(TableError, match=r"21001-0.0 \(<5 values, first at line 3, expected numbers"):
            read(tmp_path, f"eid,21001-0.0,31-0.0\n1,2.5,0\n2,{text},1.0\n")


def test_identifiers_with_decimals_are_the_same_identifiers(tmp_path):
    _, eids, found = read(tmp_path, "eid,31-0.0\n1000002.0,1\n1000001.00,0\n")
    assert list(eids) == [1000001, 1000002] and found["p31"].to_list() == [0, 1]


def test_times_are_read_with_a_space_or_a_t(tmp_path):
    times = Dictionary({1: Field(1, "When", "time")})
    (tmp_path / "a.csv").write_text("eid,1-0.0\n5,2006-02-01T10:00:05\n6,2006-02-01 10:00:05.5\n7,\n")
    read_table(tmp_path / "a.csv", times, tmp_path / "t")
    found = pl.read_parquet(tmp_path / "t-0.parquet")["p1"].to_list()
    assert found == [
        datetime.datetime(2006, 2, 1, 10, 0, 5),
        datetime.datetime(2006, 2, 1, 10, 0, 5, 500_000),
        None,
    ]


def test_unknown_columns_are_left_out_and_listed(tmp_path):
    summary, _, found = read(tmp_path, "shoe,eid,999999-0.0,31-0.0,\na,1000001,3,1,\n")
    assert summary.unknown == ["shoe", "999999-0.0", "column 5 (no name)"] and found.columns == ["p31"]
    assert (summary.file, summary.spellings, summary.n_dropped) == ("a.csv", ["ukbconv"], 0)


def test_a_column_without_a_name_is_called_by_its_number(tmp_path):
    text = ",eid,31-0.0,shoe, \n0,1000001,1,a,b\n1,1000002,0,a,b\n"  # pandas' index, and a comma too many
    summary, _, found = read(tmp_path, text)
    assert summary.unknown == ["column 1 (no name)", "shoe", "column 5 (no name)"]
    assert found.columns == ["p31"]
    biobank = ingest(tmp_path / "a.csv", tmp_path / "a.biobank")
    assert any("column 1 (no name), shoe, column 5 (no name)" in line for line in biobank.report())


def test_two_unknown_columns_of_one_name_are_left_out_too(tmp_path):
    summary, _, found = read(tmp_path, "eid,31-0.0,foo,foo\n1000001,1,2,3\n")
    assert summary.unknown == ["foo", "foo"] and found["p31"].to_list() == [1]


def test_rows_with_a_negative_identifier_are_dropped_where_that_is_wanted(tmp_path):
    text = "eid,31-0.0\n1000002,1\n-1,0\n1000001,0\n-1,1\n"
    summary, eids, found = read(tmp_path, text, drop_negative=True)
    assert (eids, found["p31"].to_list(), summary.n_dropped) == ([1000001, 1000002], [0, 1], 2)


def test_a_table_of_withdrawn_people_only_is_refused(tmp_path):
    with pytest.raises(TableError, match="a.csv, column eid: .*only people who have withdrawn"):
        read(tmp_path, "eid,31-0.0\n-1,0\n-2,1\n", drop_negative=True)


def test_columns_in_several_parts_are_the_same_as_in_one(tmp_path, monkeypatch):
    data = as_text(random_rows(200, 4))
    (tmp_path / "one").mkdir()
    _, eids, whole = read(tmp_path / "one", data)
    monkeypatch.setattr(table_module, "GROUP_CELLS", 400)  # two columns at a time
    summary, again, parts = read(tmp_path, data)
    assert len(summary.parts) == 4 and again == eids
    assert parts.select(whole.columns).equals(whole)


# what is wrong, the text, and what the message must say: where, and what to do
BAD = {
    "a repeated participant": (
        "eid,31-0.0\n5000001,1\n5000001,0\n",
        r"a.csv, column eid.*first at line 3\. Merge or remove",
    ),
    "a short line": ("eid,31-0.0\n5000001,1\n5000002\n", r"a.csv, line 3: expected 2 fields.*found 1.*again"),
    "a long line": ("eid,31-0.0\n5000001,1,2\n", r"a.csv, line 2: expected 2 fields.*found 3.*again"),
    "a blank line": ("eid,31-0.0\n5000001,1\n\n5000002,1\n", r"a.csv, line 3: .*a blank line.*again"),
    "text in a number": (
        "eid,31-0.0,50-0.0\n5000001,1,9\n5000002,1,tall\n5000003,1,short\n",
        r"a.csv: .*50-0.0 \(<5 values, first at line 3, expected numbers\).*--fields",
    ),
    "a fraction in a whole number": (
        "eid,21003-0.0\n5000001,40.5\n",
        r"21003-0.0 \(<5 values, first at line 2, expected whole",
    ),
    "two ways of writing dates in a column": (
        "eid,53-0.0\n5000001,13/03/2006\n5000002,2006-03-13\n",
        r"a.csv: .*53-0.0 \(<5 values, first at line 2, expected dates written yyyy-mm-dd",
    ),
    "two ways of writing dates in two columns": (
        "eid,53-0.0,53-1.0\n5000001,13/03/2006,2012-03-13\n",
        r"a.csv: .*53-0.0 \(<5 values, first at line 2, expected dates",
    ),
    "a month before its day": (
        "eid,53-0.0\n5000001,03/13/2006\n",
        r"a.csv: .*53-0.0 \(<5 values, first at line 2, expected dates",
    ),
    "a day that is none": ("eid,53-0.0\n5000001,2006-02-30\n", r"53-0.0 \(<5 values, first at line 2"),
    "a negative identifier": (
        "eid,31-0.0\n5000001,1\n-1,1\n",
        r"a.csv, column eid.*first at line 3.*--drop-negative-eids",
    ),
    "identifier zero": ("eid,31-0.0\n0,1\n", r"a.csv, column eid.*line 2.*--drop-negative-eids"),
    "an identifier of letters": (
        "eid,31-0.0\n5000001,1\nabc,1\n",
        r"a.csv, column eid: expected whole numbers, digits only, found <5 that are not, first at line 3",
    ),
    "an identifier with decimals": (
        "eid,31-0.0\n5000001.5,1\n",
        r"a.csv, column eid: expected whole numbers, digits only, found <5 that are not, first at line 2",
    ),
    "an empty identifier": ("eid,31-0.0\n5000001,1\n,1\n", r"a.csv, column eid.*first at line 3\. Remove"),
    "no identifier column": ("31-0.0\n1\n", r"found 0 such columns.*Export the table with its eid"),
    "two identifier columns": ("eid,f.eid,31-0.0\n5000001,5000001,1\n", r"found 2 such columns"),
    "one column twice": ("eid,31-0.0,p31\n5000001,1,1\n", r"column p31: .*31-0.0, p31\. Leave all but one"),
    "no known field": ("eid,999999-0.0\n5000001,1\n", r"a.csv: .*no column of a known field"),
    "a header alone": ("eid,31-0.0\n", r"a.csv: .*no rows"),
    "nothing": ("", r"a.csv: .*an empty file"),
    "an open quote": (
        'eid,31-0.0\n5000001,1\n5000002,"1\n5000003,0\n',
        r"a.csv, line 3: expected a closing quote.*again",
    ),
    "a zero byte": (b"eid,31-0.0\n5000001,1\x00\n", r"a.csv: .*31-0.0 \(<5 values, first at line 2"),
    "a number beyond the type": (
        "eid,31-0.0\n5000001,99999999999\n",
        r"a.csv: .*31-0.0 \(<5 values, first at line 2",
    ),
    "a number beyond the type, with decimals": (
        "eid,31-0.0\n5000001,-99999999999.0\n",
        r"a.csv: .*31-0.0 \(<5 values, first at line 2",
    ),
    "a number that would change with decimals": (
        "eid,34-0.0\n5000001,4.0\n5000002,9007199254740993\n",
        r"a.csv: .*34-0.0 \(<5 values, first at line 2, expected whole numbers",
    ),
    "a quote within a text": (
        'eid,40001-0.0\n5000001,5" nail\n',
        r"a.csv, line 2: .*a quote within a cell\. Write",
    ),
    "a quote within a number": (
        'eid,50-0.0\n5000001,"18"1\n',
        r"a.csv, line 2: .*a quote within a cell\. Write",
    ),
    "text in a list": (
        'eid,p20002_i0\n5000001,"[1065,x]"\n',
        r"a.csv: .*p20002_i0 \(<5 values, first at line 2",
    ),
    "no identifier in a named file": ("31-0.0\n1\n", r"a.csv, the header: "),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_table_error_that_says_where_and_leaves_nothing(tmp_path, what):
    data, message = BAD[what]
    with pytest.raises(TableError, match=message) as caught:
        read(tmp_path, data)
    assert "500000" not in str(caught.value)  # no identifier
    for value in ("tall", "13/03", "40.5", "2006-02-30", "99999999999"):
        assert value not in str(caught.value)  # no participant's value
    assert [path for path in (tmp_path / "out").rglob("*")] == []


SECRETS = {
    "text in a number": "eid,50-0.0\n5000001,SECRETVALUE\n",
    "text in a date": "eid,53-0.0\n5000001,SECRETVALUE\n",
    "text in a list": "eid,p20002_i0\n5000001,SECRETVALUE\n",
    "a quote within a text": 'eid,40001-0.0\n5000001,"SECRETVALUE"x\n',
    "a quote beside a whole number with decimals": 'eid,31-0.0,40001-0.0\n5000001,1.0,"SECRETVALUE"x\n',
}


@pytest.mark.parametrize("what", SECRETS)
def test_not_even_the_traceback_of_a_refusal_holds_what_a_cell_holds(tmp_path, what):
    with pytest.raises(TableError) as caught:
        read(tmp_path, SECRETS[what])
    assert "SECRETVALUE" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None  # a UnicodeDecodeError holds the bytes that it could not read
    assert [path for path in (tmp_path / "out").rglob("*")] == []


def test_bad_cells_in_many_columns_are_counted(tmp_path):
    names = [f"p30{i}0_i0" for i in (60, 61, 62, 63, 64, 65, 66, 67)]
    with pytest.raises(TableError, match=r"and 3 more columns") as caught:
        read(tmp_path, f"eid,{','.join(names)}\n1000001{',x' * 8}\n")
    assert str(caught.value).count("first at line 2") == 5


def test_lines_are_counted_as_an_editor_does_below_a_cell_of_two_lines(tmp_path):
    head = f'eid,31-0.0,{TEXT}-0.0\n1000001,1,"two\nlines"\n'
    with pytest.raises(TableError, match="line 4"):
        read(tmp_path, head + "1000002,1\n")
    with pytest.raises(TableError, match="line 4"):
        read(tmp_path, head + "1000002,x,\n")
    with pytest.raises(TableError, match="repeated, first at line 5"):
        read(tmp_path, head + "1000002,1,\n1000001,1,\n")


def test_a_cut_off_last_line_is_found_and_a_missing_last_line_break_is_not_one(tmp_path):
    _, eids, _ = read(tmp_path, "eid,31-0.0\n1000001,1\n1000002,0")
    assert eids == [1000001, 1000002]
    with pytest.raises(TableError, match="line 3"):
        read(tmp_path, "eid,31-0.0\n1000001,1\n1000002")


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    assert read(tmp_path, "eid,31-0.0\n1000001,1\n\n\n")[1] == [1000001]
    assert read(tmp_path, "eid,31-0.0\r\n1000001,1\r\n\r\n")[1] == [1000001]


def test_a_file_that_is_absent_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "a.csv", tmp_path):
        with pytest.raises(TableError, match="nothing at that place"):
            read_table(path, D, tmp_path / "out" / "t")


CODINGS = {
    9: {"0": "Female", "1": "Male"},
    100291: {"-1": "Do not know", "-3": "Prefer not to answer"},
    819: {"1901-01-01": "Code has event date before participant's date of birth"},
    6: {
        "1065": "hypertension",
        "1473": "high cholesterol, treated",
        "1260": "myasthenia gravis",
        "1437": "myasthenia gravis",
    },
}
CODED = """\
eid,p31,p1160_i0,p20002_i0,p53_i0,p130000,p50_i0,p990001_i0
5000003,0,7,1065|1473,2008-03-01,,170.5,café
5000001,1,-1,1473,2009-12-20,1901-01-01,,
5000002,1,-3,,2010-01-31,1999-02-01,181.0,
"""


def relabelled(text: str) -> str:
    "The same table as RAP's exporter writes it with REPLACE."
    rows = list(csv.reader(io.StringIO(text)))
    codings = {"p31": 9, "p1160_i0": 100291, "p20002_i0": 6, "p130000": 819}
    for row in rows[1:]:
        for i, name in enumerate(rows[0]):
            labels = CODINGS.get(codings.get(name), {})
            row[i] = "|".join(labels.get(code, code) for code in row[i].split("|"))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def day_first(text: str) -> str:
    return re.sub(r"(\d{4})-(\d\d)-(\d\d)", r"\3/\2/\1", text)


def ukbconv(text: str, cut: bool) -> str:
    "The same table as ukbconv txt writes it, with the ends of lines cut off."
    names = "eid\t31-0.0\t1160-0.0\t20002-0.0\t20002-0.1\t53-0.0\t130000-0.0\t50-0.0\t990001-0.0"
    lines = [names]
    for line in csv.reader(io.StringIO(text)):
        if line[0] != "eid":
            cells = line[:3] + [*line[3].split("|"), ""][:2] + line[4:]
            lines.append("\t".join(cells).rstrip("\t") if cut else "\t".join(cells))
    return "\n".join(lines) + "\n"


FORMS = {
    "latin-1": CODED.encode("latin-1"),
    "utf-16": CODED.encode("utf-16"),
    "with a mark": CODED.encode("utf-8-sig"),
    "gzip": gzip.compress(CODED.encode()),
    "latin-1 and gzip": gzip.compress(CODED.encode("latin-1")),
    "day first": day_first(CODED).encode(),
    "labels": relabelled(CODED).encode(),
    "labels, latin-1 and gzip": gzip.compress(relabelled(CODED).encode("latin-1")),
    "tab": ukbconv(CODED, cut=False).encode(),
    "ragged": ukbconv(CODED, cut=True).encode(),
    "ragged and gzip": gzip.compress(ukbconv(CODED, cut=True).encode()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_is_read_to_the_same_bytes(tmp_path, form):
    labelled = Dictionary(OWN.fields, CODINGS)
    found = []
    for name, data in (("plain", CODED.encode()), ("form", FORMS[form])):
        (tmp_path / name).write_bytes(data)
        summary, eids = read_table(tmp_path / name, labelled, tmp_path / "out" / name)
        assert eids.tolist() == [5000001, 5000002, 5000003]
        found.append((tmp_path / "out" / summary.parts[0]).read_bytes())
    assert found[0] == found[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["form-0.parquet", "plain-0.parquet"]
    values = pl.read_parquet(tmp_path / "out" / "form-0.parquet")
    assert values["p20002_i0"].to_list() == [[1473], None, [1065, 1473]]
    assert values["p1160_i0"].to_list() == [-1, -3, 7] and values["p990001_i0"].to_list() == [
        None,
        None,
        "café",
    ]
    assert values["p130000"].to_list() == [datetime.date(1901, 1, 1), datetime.date(1999, 2, 1), None]


def test_labels_win_over_codes_where_a_file_holds_labels(tmp_path):
    "Coding 90002 calls its code 1 '2' and its code 2 '1'; field 31 shows that the file holds labels."
    own = Dictionary({**D.fields, 990002: Field(990002, "Crossed", "categorical_single", coding=90002)},
                     {9: CODINGS[9], 90002: {"1": "2", "2": "1"}})  # fmt: skip
    for name, sexes, expected in (("codes", "01", [1, 2]), ("labels", ("Female", "Male"), [2, 1])):
        path = tmp_path / name
        path.write_text(f"eid,p31,p990002\n5000001,{sexes[0]},1\n5000002,{sexes[1]},2\n")
        summary, _ = read_table(path, own, tmp_path / "out" / name)
        assert pl.read_parquet(tmp_path / "out" / summary.parts[0])["p990002"].to_list() == expected


def test_a_label_of_two_codes_is_left_out_and_counted(tmp_path):
    labelled = Dictionary(D.fields, CODINGS)
    (tmp_path / "a.csv").write_text(
        "eid,p31,p20002_i0\n5000001,Male,myasthenia gravis|hypertension\n5000002,Female,\n"
    )
    summary, _ = read_table(tmp_path / "a.csv", labelled, tmp_path / "out")
    assert summary.undecided == {"p20002_i0": 1} and summary.labelled == ["p20002_i0", "p31"]
    assert summary.notes == ["labels of several codes in p20002_i0: myasthenia gravis"]
    assert pl.read_parquet(tmp_path / summary.parts[0])["p20002_i0"].to_list() == [[1065], None]


def test_a_replaced_export_needs_no_other_file(tmp_path):
    (tmp_path / "a.csv").write_text(
        "eid,p20116_i0,p1160_i0,p6138_i0\n"
        "5000001,Previous,8,College or University degree|A levels/AS levels or equivalent\n"
        "5000002,Prefer not to answer,Do not know,None of the above\n"
        '5000003,Never,,"Other professional qualifications eg: nursing, teaching"\n'
    )
    summary, _ = read_table(tmp_path / "a.csv", D, tmp_path / "out")
    found = pl.read_parquet(tmp_path / summary.parts[0])
    assert found["p20116_i0"].to_list() == [1, -3, 0] and found["p1160_i0"].to_list() == [8, -1, None]
    assert found["p6138_i0"].to_list() == [[1, 2], [-7], [6]]


def test_labels_without_a_dictionary_of_them_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(TableError, match="p31 .*expected whole numbers.*--codings"):
        read(tmp_path, "eid,p31\n5000001,Male\n")


@pytest.mark.parametrize("data", [b"PK\x03\x04zip", b"\x28\xb5\x2f\xfdzstd", b"BZh9"])
def test_archives_are_refused_as_what_they_are(tmp_path, data):
    with pytest.raises(TableError, match="expected a text table, or one compressed with gzip.*Decompress"):
        read(tmp_path, data)


@pytest.mark.parametrize("encoding, message", [("utf-16", "expected text in utf-16"), ("ascii", "expected text in ascii"),
                                               ("latin-one", "'latin-one', which is none")])  # fmt: skip
def test_an_encoding_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, encoding, message):
    with pytest.raises(TableError, match=message):
        read(tmp_path, "eid,31-0.0\n5000001,é\n".encode("latin-1"), encoding=encoding)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_gzip_file_that_is_cut_off_is_refused_and_leaves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    text = "eid,50-0.0\n" + "".join(
        f"{5000001 + i},{x:.9f}\n" for i, x in enumerate(rng.normal(170, 9, 2000))
    )
    packed = gzip.compress(text.encode())
    assert read(tmp_path, packed)[1][-1] == 5002000
    for length in (len(packed) // 2, len(packed) - 4):
        with pytest.raises(TableError, match="cut off or damaged"):
            read(tmp_path, packed[:length])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["t-0.parquet"]


def test_a_ragged_line_that_can_not_be_told_is_refused_with_its_number(tmp_path):
    head = "eid\t31-0.0\t50-0.0\n5000001\t1\n"
    for line, message in (("5000002\t0\t170\t3\n", "line 3: expected 3 fields.*found 4"),
                          ("5000002\t0", "line 3: .*cut off")):  # fmt: skip
        with pytest.raises(TableError, match=message):
            read(tmp_path, head + line)
    assert read(tmp_path, head + "5000002\t0\t170\t\t\n")[0].notes == [
        "some lines were shorter or longer than the header"
    ]
    with pytest.raises(TableError, match="line 3"):  # only ukbconv's text is ragged; a csv is damaged
        read(tmp_path, "eid,31-0.0,50-0.0\n5000001,1,2\n5000002,1\n")


def test_the_mice_are_read_as_pandas_reads_them(tmp_path):
    folder = shared_data("hs_mice")
    own = D.overlay(folder / "extra_fields.tsv", folder / "extra_codings.tsv")
    summary, eids = read_table(folder / "phenotypes.csv", own, tmp_path / "t")
    found = pl.read_parquet(tmp_path / summary.parts[0])
    expected = pd.read_csv(folder / "phenotypes.csv").sort_values("eid").reset_index(drop=True)
    assert eids.tolist() == expected["eid"].tolist() and found.shape == (1814, 25)
    assert summary.unknown == ["90530-0.0", "90520-0.0", "90510-0.0"]  # described by no dictionary
    sources = [name for name in expected.columns[1:] if name not in summary.unknown]
    for name, source in zip(summary.columns, sources, strict=True):
        if found[name].dtype.is_numeric():
            assert np.array_equal(
                found[name].cast(pl.Float64).to_numpy(), expected[source].to_numpy(float), equal_nan=True
            )
        else:
            assert (
                found[name].cast(pl.String).fill_null("").to_list()
                == expected[source].fillna("").astype(str).tolist()
            )


@pytest.mark.parametrize(
    ("leave_out", "columns", "gone"),
    [
        ("p21003", ["p31", "p20002_i0", "p20002_i1"], ["21003-0.0", "21003-1.0"]),
        ("p21003_i1", ["p31", "p21003_i0", "p20002_i0", "p20002_i1"], ["21003-1.0"]),
        ("20002-0.1", ["p31", "p21003_i0", "p21003_i1", "p20002_i0", "p20002_i1"], ["20002-0.1"]),
        ("p20002_i0", ["p31", "p21003_i0", "p21003_i1", "p20002_i1"], ["20002-0.0", "20002-0.1"]),
        ("p2", ["p31", "p21003_i0", "p21003_i1", "p20002_i0", "p20002_i1"], []),
    ],
)
def test_a_field_a_column_or_a_name_is_passed_over(tmp_path, leave_out, columns, gone):
    names = "eid,31-0.0,21003-0.0,21003-1.0,20002-0.0,20002-0.1,20002-1.0\n"
    summary, _, table = read(tmp_path, names + "5000001,1,50,57,1065,1066,1067\n", leave_out=[leave_out])
    assert summary.columns == columns == table.columns
    assert summary.notes == ([f"left out as asked: {', '.join(gone)}"] if gone else [])


def test_of_one_column_in_two_baskets_of_a_file_the_newest_is_read_and_the_other_reported(tmp_path):
    data = "eid,31-0.0_900,31-0.0_1000,21003-0.0\n5000001,0,1,50\n"
    summary, _, table = read(tmp_path, data)
    assert (table["p31"].to_list(), table["p21003_i0"].to_list()) == ([1], [50])
    assert summary.notes[0] == "left out, a newer basket has them too: 31-0.0_900"
    summary, _, table = read(tmp_path, data, leave_out=["31-0.0_1000"])
    assert table["p31"].to_list() == [0]


def test_a_name_as_it_stands_in_the_file_is_left_out_alone(tmp_path):
    summary, _, table = read(tmp_path, "eid,p31,31-0.0\n5000001,0,1\n", leave_out=["p31"])
    assert (table["p31"].to_list(), summary.notes) == ([1], ["left out as asked: p31"])


def test_a_column_that_fits_nothing_does_not_keep_the_others_from_being_read_where_it_is_left_out(tmp_path):
    data = "eid,31-0.0,50-0.0\n5000001,1,tall\n"
    with pytest.raises(TableError, match="--leave-out"):
        read(tmp_path, data)
    summary, _, table = read(tmp_path, data, leave_out=["p50"])
    assert (summary.columns, table["p31"].to_list()) == (["p31"], [1])


@pytest.mark.parametrize(("end", "cut"), [("", True), ("\n", False), ("\r\n", False), ("\n\n", False)])
def test_a_file_that_ends_within_a_line_is_told_of(tmp_path, end, cut):
    summary, _, table = read(tmp_path, "eid,21003-0.0\n5000001,50\n5000002,5" + end)
    assert table["p21003_i0"].to_list() == [50, 5]
    assert ["cut off" in note for note in summary.notes] == ([True] if cut else [])


LISTS = {
    '["I10","E119"]': ["I10", "E119"],
    "['I10', 'E119']": ["I10", "E119"],
    "I10|E119": ["I10", "E119"],
    '["I10",null]': ["I10"],
    "[null]": None,
    "[]": None,
    '["I21.9 Acute myocardial infarction, unspecified","I10 Essential (primary) hypertension"]': [
        "I219",
        "I10",
    ],
    '["I25.1","E11.9"]': ["I251", "E119"],
    "I21.9|E11.9 Type 2, without complications": ["I219", "E119"],
}


@pytest.mark.parametrize("cell", LISTS)
def test_codes_of_diseases_in_a_list_are_codes_however_they_are_written(tmp_path, cell):
    quoted = cell.replace('"', '""')
    _, _, found = read(tmp_path, f'eid,p41270,p31\n1000001,"{quoted}",0\n1000002,,1\n')
    assert found["p41270"].to_list() == [LISTS[cell], None]


def test_a_list_of_labels_in_json_is_read_like_one_with_bars_between(tmp_path):
    labels = ["nursing, teaching", 'a 5" nail', "caf\u00e9", "O'Brien"]
    fields = {
        7: Field(7, "Things", "categorical_multiple", coding=7),
        8: Field(8, "Sex", "categorical_single", coding=8),
    }
    own = Dictionary(fields, {7: {str(i): label for i, label in enumerate(labels, 1)}, 8: {"0": "Female"}})
    for written in (json.dumps(labels), json.dumps(labels, ensure_ascii=False), "|".join(labels)):
        pd.DataFrame({"eid": [5], "p7": [written], "p8": ["Female"]}).to_csv(
            tmp_path / "own.csv", index=False
        )
        read_table(tmp_path / "own.csv", own, tmp_path / "own")
        assert pl.read_parquet(tmp_path / "own-0.parquet")["p7"].to_list() == [[1, 2, 3, 4]]


ODD = {
    "a number for a code of ICD-9": ("p41271", "2500.0"),
    "a number that has lost its zero": ("p41271", "38.9"),
    "a dot behind too much": ("p41270", "I219.1"),
    "a list that is cut off": ("p20002_i0", '"[1065,"'),
    "a list within a list": ("p20002_i0", '"[[1065]]"'),
    "null as a text": ("p20002_i0", "null"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_may_have_lost_digits_or_is_no_list_is_refused(tmp_path, what):
    name, cell = ODD[what]
    with pytest.raises(TableError, match=rf"{name} \(<5 values, first at line 3"):
        read(tmp_path, f"eid,{name},p31\n1000001,,0\n1000002,{cell},1\n")


def test_a_wide_table_of_labels_takes_no_more_memory_than_one_of_codes(tmp_path):
    "In a process of its own: with a plan for all columns at once it took 20 GB."
    dictionary = Dictionary.builtin()
    fields = [
        one
        for one in dictionary.fields.values()
        if one.value_type == "categorical_single" and one.dtype == pl.Int32
    ]
    labels = {
        f"p{one.field_id}_i{i}": next(iter(dictionary.codes(one.coding)), "")
        for one in fields
        if one.instanced
        for i in range(one.instance_max + 1)
    }
    lines = [",".join(["eid", *labels])] + [
        ",".join([str(1_000_001 + i), *(f'"{label}"' for label in labels.values())]) for i in range(300)
    ]
    (tmp_path / "wide.csv").write_text("\n".join(lines) + "\n")
    program = (
        "import sys; from ukbmm.biobank.dictionary import Dictionary; from ukbmm.biobank.table import read_table\n"
        "read_table(sys.argv[1], Dictionary.builtin(), sys.argv[2])\n"
    )
    peak = peak_mib(program, tmp_path / "wide.csv", tmp_path / "wide")
    assert len(labels) > 1_000 and peak < 1024


def test_no_byte_of_a_windows_text_is_lost(tmp_path):
    every = bytes(byte for byte in range(0x80, 0x100))
    _, _, found = read(tmp_path, f"eid,{TEXT}-0.0\n1,".encode() + every + b"\n")
    text = found[f"p{TEXT}_i0"].item()
    assert len(set(text)) == 128 and text[0] == "\u20ac" and text[1] == "\x81" and text[-1] == "\xff"


@pytest.mark.parametrize(
    "packed", [gzip.compress, lambda data: data.replace(b"\t9", b"")], ids=["gzip", "ragged"]
)
def test_an_older_basket_is_counted_where_the_file_was_unpacked_or_evened_out(tmp_path, packed):
    lines = ["eid\t31-0.0_4\t31-0.0_12\t21003-0.0"] + [f"{eid}\t0\t{eid % 2}\t9" for eid in range(1001, 1021)]
    summary, _, found = read(tmp_path, packed(("\n".join(lines) + "\n").encode()))
    assert found["p31"].to_list() == [1, 0] * 10
    assert summary.notes[-1] == "31-0.0_4 differs from its newer basket in 10 participants"


def test_what_an_older_basket_of_the_same_file_has_otherwise_is_counted(tmp_path):
    people = range(1000001, 1000013)
    lines = [f"{eid},{eid % 2},{eid % 2},{i},{i + (i > 3)}" for i, eid in enumerate(people)]
    summary, _, found = read(
        tmp_path, "\n".join(["eid,31-0.0_100,31-0.0_200,21003-0.0_200,21003-0.0_100", *lines]) + "\n"
    )
    assert found["p21003_i0"].to_list() == list(range(12))
    assert summary.notes == [
        "left out, a newer basket has them too: 31-0.0_100, 21003-0.0_100",
        "21003-0.0_100 differs from its newer basket in 8 participants",
    ]


def test_titles_of_several_fields_are_told_apart_by_the_list_they_were_exported_by(tmp_path):
    twins = [one for one in D.fields.values() if one.title == "Weight"]
    assert {one.field_id for one in twins} >= {21002, 23098}
    (tmp_path / "a.field_names.txt").write_text("eid\np23098_i1\np21002_i1\np34\n")
    header = "Participant ID,Weight | Instance 1,Weight | Instance 1,Year of birth"
    summary, _, found = read(tmp_path, f"{header}\n1000001,70,70.5,1950\n")
    assert found.to_dict(as_series=False) == {"p23098_i1": [70.0], "p21002_i1": [70.5], "p34": [1950]}
    assert "columns named by a.field_names.txt" in summary.notes and not summary.ambiguous
    (tmp_path / "a.field_names.txt").write_text("eid\np23098_i1\np34\np21002_i1\n")
    with pytest.raises(
        TableError,
        match=r"a.field_names.txt, column 3 in the list of columns: .*'Weight \| Instance 1', found p34",
    ):
        read(tmp_path, f"{header}\n1000001,70,70.5,1950\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eid 31-0.0\n1000001 1\n", "tabs, commas or semicolons between them, found spaces"),
        (
            "eid,31-0.0\n1000001,1\neid,31-0.0\n1000002,1\n",
            "first at line 3. The header stands there a second time",
        ),
        ("eid,31-0.0\n1.000001E+06,1\n", "A spreadsheet may have written it"),
        ("eid,31-0.0\nabc,1\n", "first at line 2. Correct the file"),
    ],
)
def test_what_happened_to_a_table_is_said(tmp_path, text, message):
    with pytest.raises(TableError, match=re.escape(message)):
        read(tmp_path, text)


def test_semicolons_and_line_breaks_in_names_are_read(tmp_path):
    _, _, found = read(tmp_path, "eid;31-0.0;50-0.0\n1000001;1;170.5\n")
    assert found.row(0) == (1, 170.5)
    summary, _, found = read(tmp_path, 'eid,"Sex\n of p",53-0.0\n1000001,1,2008-01-02\n')
    assert (summary.unknown, found.columns) == (["Sex\n of p"], ["p53_i0"])
