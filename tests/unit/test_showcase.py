"Every file in which UK Biobank describes itself is recognised by its header and read into the same words."

import os
import zipfile
from pathlib import Path

import polars as pl
import pytest

from ukbmm.biobank.dictionary import Dictionary, Field
from ukbmm.biobank.showcase import FORMS, category_paths, read_cells, read_showcase, recognise
from ukbmm.core import DictionaryError

WHEELS = "UKBMM_WHEELS"


def funpack_file(tmp_path: Path, name: str) -> Path:
    "A file of the schema in FUNPACK's wheel; skips the test where the wheel is absent."
    wheels = sorted(Path(os.environ.get(WHEELS, "wheels")).glob("fmrib_unpack-*.whl"))
    if not wheels:
        pytest.skip(f"no wheel of fmrib-unpack; set {WHEELS} to the folder that holds it (pip download)")
    (tmp_path / Path(name).name).write_bytes(zipfile.ZipFile(wheels[0]).read(f"funpack/schema/{name}"))
    return tmp_path / Path(name).name


def tabs(*rows: tuple[str, ...]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


FIELD_HEADER = tuple(
    "field_id title availability stability private value_type base_type item_type strata instanced arrayed sexed units "
    "main_category encoding_id instance_id instance_min instance_max array_min array_max notes debut version "
    "num_participants item_count showcase_order cost_do cost_on cost_sc".split()
)


def field_row(**changes: str) -> tuple[str, ...]:
    "A row of a field.txt: self-reported illness."
    row = dict.fromkeys(FIELD_HEADER, "0") | {
        "field_id": "20002", "title": "Non-cancer illness code, self-reported", "value_type": "22", "base_type": "11",
        "instanced": "1", "arrayed": "1", "units": "", "main_category": "100074", "encoding_id": "6", "instance_id": "2",
        "instance_max": "3", "array_max": "36", "notes": "Code for illness.", "debut": "2012-01-02", "version": "2025-03-04",
    }  # fmt: skip
    return tuple((row | changes).values())


OLD_HEADER = tuple("Path Category FieldID Field Participants Items Stability ValueType Units ItemType Strata Sexed Instances "
                   "Array Coding Notes Link".split())  # fmt: skip
OLD_ROW = ("Assessment centre > Verbal interview", "100074", "20002", "Non-cancer illness code, self-reported", "1", "2", "Complete",
           "Categorical multiple", "", "Data", "Primary", "Unisex", "4", "37", "6", 'Code for "illness".', "http://x")  # fmt: skip
RAP_HEADER = ("entity,name,type,primary_key_type,coding_name,concept,description,folder_path,is_multi_select,is_sparse_coding,"
              "linkout,longitudinal_axis_type,referenced_entity_field,relationship,title,units\n")  # fmt: skip
RAP_ROWS = RAP_HEADER + "".join(
    f"participant,p20002_i{i},integer,,data_coding_6,,,Interview,yes,,,,,,"
    f'"Non-cancer illness code, self-reported | Instance {i}",\n'
    for i in range(4)
)
EHIER = ("encoding_id", "code_id", "parent_id", "value", "meaning", "selectable", "showcase_order")
ONE = ("coding", "meaning", "node_id", "parent_id", "selectable")
EXAMPLES = {
    "field.txt": ("fields", tabs(FIELD_HEADER, field_row())),
    "Data_Dictionary_Showcase": ("fields", tabs(OLD_HEADER, OLD_ROW)),
    "data_dictionary.csv": ("fields", RAP_ROWS),
    "ehierint.txt": ("codes", tabs(EHIER, ("6", "1071", "0", "-1", "cardiovascular", "0", "1"),
                                   ("6", "1081", "1071", "1065", "hypertension", "1", "2"))),
    "esimpint.txt": ("codes", tabs(("encoding_id", "value", "meaning", "showcase_order"), ("6", "1065", "hypertension", "1"))),
    "Codings": ("codes", tabs(("Coding", "Value", "Meaning"), ("6", "1065", "hypertension"))),
    "coding6.tsv": ("codes", tabs(ONE, ("-1", "cardiovascular", "1071", "0", "N"), ("1065", "hypertension", "1081", "1071", "Y"))),
    "codings.csv": ("codes", "coding_name,code,meaning,concept,display_order,parent_code\ndata_coding_6,1065,hypertension,,1,\n"),
    "encoding.txt": ("encoding.txt", tabs(("encoding_id", "title", "availability", "coded_as", "structure", "num_members", "descript"),
                                          ("6", "Illness", "0", "11", "2", "474", "Codes"))),
    "category.txt": ("category.txt", tabs(("category_id", "title", "availability", "group_type", "descript", "notes"),
                                          ("100074", "Medical conditions", "0", "0", "", ""))),
    "catbrowse.txt": ("catbrowse.txt", tabs(("parent_id", "child_id", "showcase_order"), ("100071", "100074", "1"))),
    "entity_dictionary.csv": ("entity_dictionary.csv", "entity,entity_title,entity_label_singular\nhesin,Hospital,Record\n"),
}  # fmt: skip


def test_there_is_an_example_of_every_form():
    assert set(EXAMPLES) == set(FORMS)


@pytest.mark.parametrize("form", EXAMPLES)
def test_a_file_is_recognised_by_its_header_whatever_its_name(tmp_path, form):
    holds, text = EXAMPLES[form]
    (tmp_path / "download (6).dat").write_text(text, encoding="utf-8")
    found = read_showcase(tmp_path / "download (6).dat")
    assert (found.form, found.holds) == (form, holds)
    if holds == "codes":
        rows = found.table.filter("selectable").select("coding", "code", "label").rows()
        assert rows == [(6, "1065", "hypertension")]


@pytest.mark.parametrize("form", ["field.txt", "Data_Dictionary_Showcase", "data_dictionary.csv"])
def test_every_form_says_the_same_of_a_field(tmp_path, form):
    (tmp_path / "a").write_text(EXAMPLES[form][1], encoding="utf-8")
    row = read_showcase(tmp_path / "a").table.row(0, named=True)
    of_rap = {"arrayed": False, "array_max": 0, "instance_id": -1} if form == "data_dictionary.csv" else {}
    shipped = vars(Dictionary.builtin()[20002])
    for name in ("field_id", "title", "value_type", "units", "coding", "instanced", "arrayed", "instance_id", "instance_max", "array_max"):  # fmt: skip
        assert row[name] == of_rap.get(name, shipped[name]), name
    assert isinstance(Field(**row), Field)


@pytest.mark.parametrize("form", ["ehierint.txt", "coding6.tsv"])
def test_both_forms_of_a_tree_give_the_same_nodes(tmp_path, form):
    (tmp_path / "coding6.tsv").write_text(EXAMPLES[form][1])
    rows = read_showcase(tmp_path / "coding6.tsv").table.rows()
    assert rows == [
        (6, 1071, 0, "-1", "cardiovascular", False),
        (6, 1081, 1071, "1065", "hypertension", True),
    ]


def test_windows_line_ends_a_mark_at_the_start_and_blank_lines_do_not_matter(tmp_path):
    text = EXAMPLES["esimpint.txt"][1]
    (tmp_path / "plain").write_text(text)
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    assert read_cells(tmp_path / "windows")[1].equals(read_cells(tmp_path / "plain")[1])


def test_a_file_in_windows_1252_is_read(tmp_path):
    (tmp_path / "a").write_bytes("Coding\tValue\tMeaning\n7\t1\tyes \u2014 café\n".encode("cp1252"))
    assert read_showcase(tmp_path / "a").table["label"].to_list() == ["yes \u2014 café"]


def test_quotes_mean_nothing_between_tabs_and_something_between_commas(tmp_path):
    (tmp_path / "a.tsv").write_text('Coding\tValue\tMeaning\n7\t1\t5" nail, "long"\n7\t2\t"\n')
    assert read_showcase(tmp_path / "a.tsv").table["label"].to_list() == ['5" nail, "long"', '"']
    (tmp_path / "a.csv").write_text('Coding,Value,Meaning\n7,1,"5"" nail,\nlong"\n7,2,x\n')
    assert read_showcase(tmp_path / "a.csv").table["label"].to_list() == ['5" nail,\nlong', "x"]


@pytest.mark.parametrize("name", ["title", "notes"])
def test_a_tab_within_free_text_is_put_right(tmp_path, name):
    row = list(field_row())
    plain = row[FIELD_HEADER.index(name)]
    row[FIELD_HEADER.index(name)] = plain.replace(" ", "\t")
    (tmp_path / "a").write_text(tabs(FIELD_HEADER, tuple(row), field_row(field_id="20003")))
    cells = read_cells(tmp_path / "a")[1]
    assert cells[name][0] == plain and cells["version"][0] == "2025-03-04" and cells["encoding_id"][0] == "6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            tabs(FIELD_HEADER, field_row(), field_row()[:20]),
            r"a, line 3: expected 29 cells, found 20 cells.*cut off",
        ),
        (tabs(FIELD_HEADER, (*field_row(), "x", "y")), "a, line 2: expected 29 cells, found 31 cells"),
        (
            tabs(FIELD_HEADER, field_row(instance_max="many")),
            "a, line 2, column instance_max: expected a whole number",
        ),
        (tabs(FIELD_HEADER, field_row(value_type="99")), "a, line 2, column value_type.*'99'"),
        (tabs(EHIER, ("6", "x", "0", "1", "a", "1", "1")), "a, line 2, column code_id"),
        ("Coding,Value,Meaning\n7,1\n", "a, line 2: expected 3 cells, found 2 cells"),
        (
            "eid,31-0.0\n",
            "a header that UK Biobank or its platform writes, found eid, 31-0.0.*Known are field.txt",
        ),
        ("", "the dictionary file a: expected a header"),
        ("coding\tmeaning\n1\tx\n", "number of the coding in its name"),
        ("encoding_id\tvalue\n", "no column meaning.*nearest to esimpint.txt"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_line(tmp_path, text, message):
    (tmp_path / "a").write_text(text)
    with pytest.raises(DictionaryError, match=message):
        read_showcase(tmp_path / "a")


def test_rap_types_are_taken_from_storage_coding_and_answers(tmp_path):
    rows = [("31", "integer", "data_coding_9", "", ""), ("34", "integer", "", "", ""), ("50_i0", "float", "", "", ""),
            ("53_i0", "date", "", "", ""), ("3166_i0", "datetime", "data_coding_439", "", "yes"), ("40001_i0", "string", "data_coding_19", "", ""),
            ("1568_i0", "integer", "data_coding_100291", "", "yes"), ("131298", "date", "data_coding_819", "", "yes"),
            ("41270", "string", "data_coding_19", "yes", ""), ("20216_i2", "string", "", "", "")]  # fmt: skip
    text = RAP_HEADER + "".join(f"participant,p{name},{kind},,{coding},,,,{several},{sparse},,,,,T,\n" for name, kind, coding, several, sparse in rows)  # fmt: skip
    (tmp_path / "a").write_text(
        text + "participant,eid,string,global,,,,,,,,,,,Participant ID,\nhesin,p9,string,,,,,,,,,,,,x,\n"
    )
    table, known = read_showcase(tmp_path / "a").table, Dictionary.builtin()
    assert table.height == len(rows)
    for row in table.iter_rows(named=True):
        field = known[row["field_id"]]
        assert (row["value_type"], row["coding"], row["text_codes"]) == (
            field.value_type,
            field.coding,
            field.text_codes,
        )


def test_a_category_above_itself_ends():
    titles = pl.DataFrame({"category_id": ["1", "2"], "title": ["a", "b"]})
    above = pl.DataFrame({"parent_id": ["1", "2"], "child_id": ["2", "1"]})
    assert set(category_paths(titles, above)) == {"1", "2"}


def test_the_more_telling_form_wins():
    assert (
        recognise(["encoding_id", "code_id", "parent_id", "value", "meaning", "selectable"]) == "ehierint.txt"
    )
    assert recognise(["encoding_id", "code_id", "value", "meaning", "selectable"]) == "esimpint.txt"


def test_the_whole_field_txt_of_the_showcase_gives_the_shipped_fields(tmp_path):
    path = funpack_file(tmp_path, "field.txt")
    found = {row["field_id"]: row for row in read_showcase(path).table.iter_rows(named=True)}
    shipped = Dictionary.builtin().fields
    assert len(found) == 11_821 and set(found) == set(shipped)
    for number, row in found.items():
        assert Field(**row | {"category": None}) == shipped[number], number


def test_every_hierarchy_file_of_funpack_is_read(tmp_path):
    read = read_showcase(funpack_file(tmp_path, "hierarchy/coding19.tsv")).table
    assert read.height == 19_190 and read["coding"].unique().to_list() == [19]
    assert read.filter(pl.col("code") == "I21").select("node", "parent", "label").row(0) == (40750, 1160, "I21 Acute myocardial infarction")  # fmt: skip
