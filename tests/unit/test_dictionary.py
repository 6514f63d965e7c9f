"The dictionary agrees with what is known of UK Biobank's fields."

import subprocess
import sys

import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank.dictionary import (
    DTYPES,
    READS_AS_MISSING,
    VALUE_TYPES,
    Dictionary,
    Field,
    Unexplained,
    describe_field,
    load_dictionary,
    load_fields,
    replaced,
    save_dictionary,
    say_unexplained,
    special_values,
)
from ukbmm.biobank.table import read_table
from ukbmm.core import DictionaryError

D = Dictionary.builtin()


def test_the_shipped_schema_has_every_field_once():
    assert len(D) == 11_821
    assert all(field_id == field.field_id for field_id, field in D.fields.items())
    assert repr(D) == "Dictionary of 11,821 fields, labels of 553 codings"


# title, type, units, coding, instanced, arrayed, kind of occasion; from the public showcase
KNOWN = {
    31: ("Sex", "categorical_single", None, 9, False, False, 0),
    34: ("Year of birth", "integer", "years", None, False, False, 0),
    50: ("Standing height", "continuous", "cm", None, True, False, 2),
    53: ("Date of attending assessment centre", "date", None, None, True, False, 2),
    54: ("UK Biobank assessment centre", "categorical_single", None, 10, True, False, 2),
    1070: ("Time spent watching television (TV)", "integer", "hours/day", 100329, True, False, 2),
    4080: ("Systolic blood pressure, automated reading", "integer", "mmHg", None, True, True, 2),
    20002: ("Non-cancer illness code, self-reported", "categorical_multiple", None, 6, True, True, 2),
    20116: ("Smoking status", "categorical_single", None, 90, True, False, 2),
    21001: ("Body mass index (BMI)", "continuous", "Kg/m2", None, True, False, 2),
    21003: ("Age when attended assessment centre", "integer", "years", None, True, False, 2),
    22009: ("Genetic principal components", "continuous", "Units", None, False, True, 0),
    30750: ("Glycated haemoglobin (HbA1c)", "continuous", "mmol/mol", None, True, False, 2),
    30760: ("HDL cholesterol", "continuous", "mmol/L", None, True, False, 2),
    40000: ("Date of death", "date", None, None, True, False, 9000001),
    40001: ("Underlying (primary) cause of death: ICD10", "categorical_single", None, 19, True, False, 9000001),
    41270: ("Diagnoses - ICD10", "categorical_multiple", None, 19, False, True, 0),
    41280: ("Date of first in-patient diagnosis - ICD10", "date", None, None, False, True, 0),
    131286: (
        "Date I10 first reported (essential (primary) hypertension)", "date", None, 819, False, False, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("field_id", KNOWN)
def test_well_known_fields_are_as_the_showcase_has_them(field_id):
    f = D[field_id]
    found = (f.title, f.value_type, f.units, f.coding, f.instanced, f.arrayed, f.instance_id)
    assert found == KNOWN[field_id]


def test_visits_and_arrays_are_counted_from_zero():
    assert (D[50].instance_max, D[4080].array_max, D[40006].instance_max) == (3, 1, 21)
    assert (D[41270].array_max, D[41280].array_max) == (258, 258)  # one date for each diagnosis
    assert D[22009].array_max == 40  # from 1 to 40


@pytest.mark.parametrize(
    ("field_id", "dtype"),
    [(31, pl.Int32), (34, pl.Int64), (50, pl.Float64), (53, pl.Date), (20002, pl.Int32), (41270, pl.String),
     (40001, pl.String), (4080, pl.Int64), (20216, pl.String)],
)  # fmt: skip
def test_values_are_held_in_the_type_of_the_field(field_id, dtype):
    assert D[field_id].dtype == dtype


def test_numbers_and_categories_are_told_apart():
    assert [D[i].is_number for i in (31, 34, 50, 53, 41270)] == [False, True, True, False, False]
    assert [D[i].is_category for i in (31, 34, 50, 53, 41270)] == [True, False, False, False, True]


def test_every_field_has_a_title_a_known_type_and_a_date():
    for field in D.fields.values():
        assert field.title and field.title == field.title.strip(), field.field_id
        assert field.value_type in VALUE_TYPES.values() and field.value_type in DTYPES
        assert len(field.version) == 10 and "2000" < field.version < "2027", field.field_id
        assert field.instance_max >= 0 and field.array_max >= 0 and field.coding != 0
        assert field.units != ""


def test_the_dictionary_agrees_with_the_listing_of_464_fields():
    listing = pl.read_csv(
        shared_data("ukb_metadata/synthetic_fields.tsv"), separator="\t", infer_schema=False, quote_char=None
    )
    words = {"cat1": "categorical_single", "catM": "categorical_multiple", "int": "integer", "cont": "continuous",
             "comp": "compound"}  # fmt: skip
    assert listing.height == 464
    for row in listing.iter_rows(named=True):
        f = D[int(row["field_id"])]
        expected = (
            row["title"].strip(), words.get(row["value_type"], row["value_type"]), int(row["encoding"] or 0) or None,
            row["units"], int(row["instance_id"]), int(row["inst_max"]), int(row["arr_max"]),
        )  # fmt: skip
        found = (f.title, f.value_type, f.coding, f.units, f.instance_id, f.instance_max, f.array_max)
        assert found == expected, f.field_id


def test_an_unknown_field_is_an_error_with_numbers_one_digit_away():
    with pytest.raises(DictionaryError, match=r"field 2101: .*Similar numbers: 2100 \(Seen a psychiatrist"):
        D[2101]
    with pytest.raises(DictionaryError, match="--fields"):
        D[987654321]
    assert 21001 in D and 2101 not in D


def test_search_finds_all_words_in_any_order_and_case():
    found = [field.field_id for field in D.search("PRESSURE systolic automated")]
    by_hand = [
        i for i in D.fields if all(w in D[i].title.lower() for w in ("pressure", "systolic", "automated"))
    ]
    assert found[0] == 4080 and sorted(found) == sorted(by_hand)
    assert D.search("no such words anywhere") == []


@pytest.mark.parametrize(
    ("field_id", "when"),
    [(31, "once"), (50, "assessment visits 0 to 3"), (4080, "assessment visits 0 to 3, up to 2 values each"),
     (40000, "death certificates 0 to 1"), (41270, "once, up to 259 values each")],
)  # fmt: skip
def test_a_field_says_when_it_was_measured(field_id, when):
    assert describe_field(D[field_id])["measured"] == when


def test_html_of_a_field_is_escaped():
    shown = Field(1, "a<b> & c", "integer", units='"x"')._repr_html_()
    assert "<b>" not in shown and "a&lt;b&gt; &amp; c" in shown


def test_special_values_are_unique_and_of_known_kinds():
    from ukbmm.biobank.cleaning import ROW_KINDS

    table = special_values()
    assert table.select("coding", "value").is_unique().all()
    assert set(table["kind"]) <= set(ROW_KINDS)


def test_every_shipped_label_that_reads_like_no_value_has_a_rule():
    assert [one for one in D.unexplained() if one.codes] == []
    kinds = special_values()
    for coding, code in ((100617, "-2"), (100272, "5"), (1414, "4")):  # without their rows they are found
        table = kinds.filter(~((pl.col("coding") == coding) & (pl.col("value") == code)))
        (one,) = (one for one in D.unexplained(table=table) if one.codes)
        assert (one.coding, list(one.codes)) == (coding, [code]) and set(one.fields) <= set(D.fields)


READS_LIKE = {
    True: ("Do not know", "Don't know", "I do not know", "Prefer not to answer", "Prefer not to say", "Not applicable", "N/A", "Unknown",
           "Test not completed", "Not performed - equipment failure", "Not known: a validation error", "Question not asked due to earlier answers",
           "Result below limit of detection", "Below the limit of quantification", "Value redacted", "Location could not be mapped",
           "Measurement missing", "Do not know/prefer not to answer", "Participant skipped/abandoned", "Cannot remember", "Unsure"),
    False: ("None of the above", "No", "Never", "Not at all", "Unknown type of butter on bread/crackers", "Reason not known", "Both eyes missing",
            "Other", "Less than a mile", "Do not drink hot drinks", "Unable to walk", "metastatic cancer (unknown primary)", "Knowledge"),
}  # fmt: skip


@pytest.mark.parametrize(("reads_so", "labels"), READS_LIKE.items())
def test_labels_that_read_like_no_value_are_told_from_answers(reads_so, labels):
    wrong = [label for label in labels if bool(READS_AS_MISSING.match(label)) != reads_so]
    assert not wrong


def test_codes_of_a_newer_coding_are_named_at_the_update_and_never_guessed(tmp_path):
    fields = tsv(tmp_path / "field.txt", NEW, ("990001", "Hours", "11", "0", "hours", "0", "0", "7777", "0", "0", "0", "2027-01-01"),
                 ("990002", "Choice", "21", "11", "", "0", "0", "7778", "0", "0", "0", "2027-01-01"))  # fmt: skip
    codes = tsv(
        tmp_path / "esimpint.txt", ("encoding_id", "value", "meaning", "showcase_order"), ("7777", "-3", "Prefer not to answer", "1"),
        ("7777", "-10", "Less than one", "2"), ("7777", "24", "All day", "3"), ("7778", "-1", "One way", "1"), ("7778", "2", "The other", "2"),
    )  # fmt: skip
    update = D.update(fields, codes)
    assert update.unexplained == [
        Unexplained(7777, {"-3": "Prefer not to answer", "-10": "Less than one"}, [990001])
    ]
    last = str(update).splitlines()[-1]
    assert (
        "coding 7777 of field 990001 (-3 Prefer not to answer, -10 Less than one). Say what they mean with --special-values."
        in last
    )
    table = pl.DataFrame({"coding": [7777, 7777], "value": ["-3", "-10"], "kind": ["present", "number"]})
    assert update.dictionary.unexplained([update.dictionary[990001]], table) == []
    only = Dictionary({990001: update.dictionary[990001]})  # without its labels
    assert only.unexplained() == [Unexplained(7777, {}, [990001])]
    assert "its labels are not known" in say_unexplained(only.unexplained())
    assert "read unknown labels with `ukbmm dictionary update`" in say_unexplained(only.unexplained())
    assert say_unexplained([]) == "" and "WITHOUT" not in str(D.update(tsv(tmp_path / "a", NEW, new_row())))


def test_codings_are_written_as_the_table_writes_them():
    times = Field(990003, "Moment", "time", coding=7779)
    labels = {7779: {"1900-01-01 00:00:00": "Not performed", "1999-01-01 00:00:00": "By post"}}
    table = pl.DataFrame({"coding": [7779], "value": ["1900-01-01"], "kind": ["not_measured"]})
    (one,) = Dictionary({990003: times}, labels).unexplained(table=table)
    assert one.codes == {"1999-01-01 00:00:00": "By post"}  # of a date every label is one
    sizes = Dictionary(
        {990004: Field(990004, "Size", "continuous", coding=7780)}, {7780: {"-1.0": "Unknown", "2.5": "half"}}
    )
    row = pl.DataFrame({"coding": [7780], "value": ["-1"], "kind": ["do_not_know"]})
    assert sizes.unexplained(table=row) == [] and sizes.unexplained()[0].codes == {"-1.0": "Unknown"}


def tsv(path, *rows):
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")
    return path


OLD = ("FieldID", "Field", "ValueType", "Units", "Coding", "Instances", "Array")


def test_own_fields_are_added_and_stand_before_the_shipped_ones(tmp_path):
    fields = tsv(
        tmp_path / "own.tsv", OLD, ("990100", 'The "own" field', "Integer", "days", "", "1", "1"),
        ("50", "Body length", "Continuous", "mm", "", "1", "2"), ("990500", "", "Categorical (multiple)", "", "12", "4", "3"),
    )  # fmt: skip
    own = D.overlay(fields)
    assert len(own) == 11_821 + 2 and len(D) == 11_821
    assert own[990100] == Field(990100, 'The "own" field', "integer", "days", source="own.tsv")
    assert own[50].title == "Body length" and not own[50].instanced and own[50].array_max == 1
    assert own[990500] == Field(
        990500, "Field 990500", "categorical_multiple", None, 12, True, True, 2, 3, 2, source="own.tsv"
    )  # four occasions are numbered 0 to 3
    assert [field.field_id for field in replaced(own, D)] == [50]


@pytest.mark.parametrize(
    ("word", "kind"),
    [("Integer", "integer"), ("11", "integer"), ("Categorical single", "categorical_single"), ("21", "categorical_single"),
     ("Categorical (single)", "categorical_single"), ("categorical multiple", "categorical_multiple"), ("CONTINUOUS", "continuous"),
     ("Text", "text"), ("Date", "date"), ("61", "time"), ("Compound", "compound")],
)  # fmt: skip
def test_value_types_are_read_as_words_or_numbers(tmp_path, word, kind):
    fields = tsv(tmp_path / "own.tsv", OLD[:3], ("90100", "x", word))
    assert D.overlay(fields)[90100].value_type == kind


def test_fields_in_the_new_layout_of_the_showcase_are_read(tmp_path):
    names = ("field_id", "title", "value_type", "base_type", "units", "instanced", "arrayed", "encoding_id", "instance_id",
             "instance_max", "array_max", "version")  # fmt: skip
    row = ("990500", "Own codes", "22", "41", "", "1", "1", "19", "2", "3", "9", "2025-01-02")
    field = D.overlay(tsv(tmp_path / "field.txt", names, row))[990500]
    assert field.dtype == pl.String and field.coding == 19 and field.array_max == 9
    assert field.source == "UK Biobank" and field.version == "2025-01-02"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("90100", "x", "Number")], r"own.tsv, line 2, column ValueType.*'Number'"),
        (
            [("90100", "x", "Integer"), ("x", "y", "Integer")],
            "own.tsv, line 3, column FieldID.*a whole number",
        ),
        ([("", "y", "Integer")], "own.tsv, line 2, column FieldID.*a whole number"),
    ],
)
def test_a_bad_row_of_own_fields_is_named_by_its_line(tmp_path, rows, message):
    with pytest.raises(DictionaryError, match=message):
        D.overlay(tsv(tmp_path / "own.tsv", OLD[:3], *rows))


def test_missing_columns_and_files_are_named(tmp_path):
    with pytest.raises(DictionaryError, match="own.tsv.*no column ValueType"):
        D.overlay(tsv(tmp_path / "own.tsv", ("FieldID", "Field"), ("1", "x")))
    with pytest.raises(DictionaryError, match="nowhere.tsv.*nothing at that place"):
        D.overlay(None, tmp_path / "nowhere.tsv")
    with pytest.raises(DictionaryError, match="nowhere.tsv.*nothing at that place"):
        D.overlay(tmp_path / "nowhere.tsv")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(b"FieldID\tField\tValueType\n1\t\x81\tInteger\n"),
        lambda path: path.write_text("FieldID\tField\tValueType\n1\ta\tInteger\textra\tmore\n"),
    ],
    ids=["empty", "no text", "ragged"],
)
def test_a_damaged_file_of_own_fields_is_a_dictionary_error(tmp_path, make):
    make(tmp_path / "own.tsv")
    with pytest.raises(DictionaryError, match="own.tsv"):
        D.overlay(tmp_path / "own.tsv")


@pytest.mark.parametrize("number", ["x", ""])
def test_a_coding_that_is_no_number_is_a_dictionary_error(tmp_path, number):
    codings = tsv(tmp_path / "codings.tsv", ("Coding", "Value", "Meaning"), (number, "1", "one"))
    with pytest.raises(DictionaryError, match="codings.tsv, line 2, column Coding"):
        D.overlay(codings)


def test_a_number_that_is_none_in_the_new_layout_is_a_dictionary_error(tmp_path):
    names = ("field_id", "title", "value_type", "base_type", "units", "instanced", "arrayed", "encoding_id", "instance_id",
             "instance_max", "array_max", "version")  # fmt: skip
    row = ("990500", "x", "many", "0", "", "0", "0", "0", "0", "0", "0", "2025-01-02")
    with pytest.raises(DictionaryError, match="field.txt, line 2, column value_type"):
        D.overlay(tsv(tmp_path / "field.txt", names, row))


def test_labels_are_kept_by_coding_and_code(tmp_path):
    codings = tsv(
        tmp_path / "c.tsv", ("Coding", "Value", "Meaning"), ("90001", "1", 'the "first"'), ("90001", "-3", "b"), ("7", "A", "c")
    )  # fmt: skip
    own = D.overlay(codings)
    assert own.labels[90001] == {"1": 'the "first"', "-3": "b"} and own.labels[7] == {"A": "c"}
    assert (
        D.labels[7] == {"0": "No", "1": "Yes"} and 90001 not in D.labels
    )  # the shipped ones are as they were


def test_a_dictionary_is_the_same_after_writing_and_reading(tmp_path):
    fields = tsv(tmp_path / "own.tsv", OLD, ("90100", "x", "Integer", "", "5", "2", "1"))
    codings = tsv(tmp_path / "c.tsv", ("Coding", "Value", "Meaning"), ("5", "1", "one"))
    own = D.overlay(fields, codings)
    save_dictionary(own, tmp_path / "d.parquet")
    again = load_dictionary(tmp_path / "d.parquet")
    assert again.fields == own.fields and again.labels == own.labels


def test_the_dictionary_of_the_mice_describes_their_own_fields():
    folder = shared_data("hs_mice")
    own = D.overlay(folder / "extra_fields.tsv", folder / "extra_codings.tsv")
    assert [own[i].source for i in range(90100, 90106)] == ["extra_fields.tsv"] * 6
    assert own[90100].units == "days" and own[90103].coding == 90001
    assert own.labels[90001]["2"] == "albino"


def test_the_shipped_labels_are_the_showcases_and_none_that_belong_to_others():
    table = pl.read_csv(shared_data("ukb_metadata/tofu_encodings.csv.gz"), infer_schema=False)
    rows = {
        (int(coding), value): meaning
        for coding, value, meaning in table.select("encoding_id", "value", "meaning").iter_rows()
    }
    own = {(coding, code): label for coding, codes in D.labels.items() for code, label in codes.items()}
    assert 25_000 < len(own) < 30_000
    dates = {key for key in own if D.labels[key[0]] and len(key[1]) >= 10 and key[1][4] == key[1][7] == "-"}
    assert {coding for coding, _ in dates} == set(SPECIAL_DATES) and not dates & set(rows)  # tofu has none
    differ = [key for key, label in own.items() if key not in dates and (rows[key] or "").strip() != label]
    assert len(differ) < 100  # a tree may list a code twice, under other words
    assert not {19, 87, 240, 259, 1834, 1835, 2} & set(D.labels)
    assert D.labels[100291] == {"-1": "Do not know", "-3": "Prefer not to answer"}
    several = [label for coding in D.labels for label, code in D.codes(coding).items() if code is None]
    assert "myasthenia gravis" in several


# how many codes the showcase's encoding.txt gives the codings of dates and times
SPECIAL_DATES = {272: 1, 439: 1, 586: 3, 691: 2, 819: 6, 1273: 2, 1313: 1, 1345: 2, 1439: 2, 1642: 1}


def test_every_coding_of_dates_is_whole():
    assert {coding: len(D.labels[coding]) for coding in SPECIAL_DATES} == SPECIAL_DATES
    used = {f.coding for f in D.fields.values() if f.value_type in ("date", "time") and f.coding}
    assert used == set(SPECIAL_DATES)
    for coding in SPECIAL_DATES:
        kinds = {f.value_type for f in D.fields.values() if f.coding == coding}
        assert {len(code) for code in D.labels[coding]} == {10 if kinds == {"date"} else 19}


def test_an_export_with_labels_in_columns_of_dates_is_read(tmp_path):
    future = D.labels[819]["2037-07-07"]
    assert future == D.labels[819]["1909-09-09"]
    cells = ["2011-02-03", "Code has no event date", "", f'"{future}"', D.labels[819]["1902-02-02"]]
    text = "eid,p31,p131298,p3166_i0_a0\n" + "".join(
        f"{5_000_001 + i},Female,{cell},{'Not performed' if i else '2008-01-02T03:04:05'}\n"
        for i, cell in enumerate(cells)
    )
    (tmp_path / "rap.csv").write_text(text)
    summary, _ = read_table(tmp_path / "rap.csv", D, tmp_path / "out" / "t")
    found = pl.read_parquet(tmp_path / "out" / summary.parts[0])
    assert found["p131298"].cast(pl.String).to_list() == [
        "2011-02-03",
        "1900-01-01",
        None,
        "2037-07-07",
        "1902-02-02",
    ]
    assert found["p3166_i0_a0"].dt.to_string("%Y").to_list() == ["2008"] + ["1900"] * 4
    assert summary.undecided == {}


def test_a_label_of_several_dates_is_the_last_and_of_several_codes_is_none():
    assert D.codes(819)[D.labels[819]["2037-07-07"]] == "2037-07-07"
    several = Dictionary({}, {1: {"1": "a", "2": "a", "3": "b"}, 2: {"2000-01-01": "a", "2001-01-01": "a"}})
    assert several.codes(1) == {"a": None, "b": "3"} and several.codes(2) == {"a": "2001-01-01"}


def test_a_field_is_found_by_its_number_and_whole_words_come_first():
    assert D.search("30690")[0].field_id == 30690 and D.search(" 31 ")[0].field_id == 31
    few = Dictionary({i: Field(i, title, "integer") for i, title in enumerate(
        ["Percentage of stage", "Age at recruitment, in years", "Age", "Damage"])})  # fmt: skip
    assert [f.title for f in few.search("AGE")] == [
        "Age",
        "Age at recruitment, in years",
        "Damage",
        "Percentage of stage",
    ]
    assert "<td>2</td><td>Age</td>" in few.search("age")._repr_html_()


def test_search_in_labels_names_coding_code_and_fields():
    found = D.search_codes("MYOCARDIAL attack")
    row = found.filter((pl.col("coding") == 6) & (pl.col("code") == "1075")).row(0, named=True)
    assert row["label"] == D.labels[6]["1075"] and row["fields"] == sorted(
        i for i, f in D.fields.items() if f.coding == 6
    )
    by_hand = {
        (c, k) for c, codes in D.labels.items() for k, label in codes.items() if "myocardial" in label.lower()
    }
    found = D.search_codes("myocardial")
    assert set(found.select("coding", "code").iter_rows()) == by_hand and len(by_hand) == found.height > 1


def test_a_coding_shows_its_first_codes_and_escapes_them():
    coding = Dictionary(
        {5: Field(5, "a<b", "integer", coding=1)}, {1: {str(i): f"<{i}>" for i in range(40)}}
    ).coding(1)
    shown = coding._repr_html_()
    assert "&lt;29&gt;" in shown and "&lt;30&gt;" not in shown and "10 more" in shown and "a&lt;b" in shown
    with pytest.raises(DictionaryError, match="coding 19: .*ukbmm dictionary update"):
        D.coding(19)


NEW = ("field_id", "title", "value_type", "base_type", "units", "instanced", "arrayed", "encoding_id", "instance_id", "instance_max",
       "array_max", "version")  # fmt: skip


def new_row(field_id=50, version="2027-01-01", instance_max=4, title="Standing height"):
    return (
        str(field_id),
        title,
        "31",
        "0",
        "cm",
        "1",
        "0",
        "0",
        "2",
        str(instance_max),
        "0",
        f"{version} 01:02:03",
    )


def test_the_newer_version_of_a_field_wins(tmp_path):
    update = D.update(tsv(tmp_path / "a", NEW, new_row()))
    assert update.fields == {"added": 0, "changed": 1, "unchanged": 0, "kept": 0}
    assert (
        update.conflicts == ["field 50: instance max 3 -> 4"]
        and update.dictionary[50].version == "2027-01-01"
    )
    update = D.update(tsv(tmp_path / "a", NEW, new_row(version="2001-01-01")))
    assert update.fields["kept"] == 1 and update.dictionary.fields == D.fields and update.conflicts == []
    update = D.update(tsv(tmp_path / "a", NEW, new_row(instance_max=3)))
    assert update.fields["unchanged"] == 1 and update.dictionary[50] == D[50]


def test_the_newest_of_two_files_wins_in_any_order(tmp_path):
    old, new = (
        tsv(tmp_path / "old", NEW, new_row(version="2026-06-01", instance_max=5)),
        tsv(tmp_path / "new", NEW, new_row()),
    )
    for paths in ((old, new), (new, old)):
        assert D.update(*paths).dictionary[50].instance_max == 4


def test_files_that_know_less_add_and_do_not_replace(tmp_path):
    old = tsv(tmp_path / "old", ("Path", *OLD), ("A > B", "50", "Height, old", "Integer", "mm", "", "1", "1"),
              ("A > B", "987650", "New to us", "Integer", "mm", "", "1", "1"))  # fmt: skip
    update = D.update(old)
    assert update.fields == {"added": 1, "changed": 0, "unchanged": 0, "kept": 1}
    assert update.dictionary[50] == D[50] and update.dictionary[987650].category == "A > B"
    (tmp_path / "rap").write_text("entity,name,type,coding_name,is_multi_select,title,units\n"
                                  "participant,p50_i7,string,,,Height | Instance 7,\n")  # fmt: skip
    update = D.update(tmp_path / "rap")
    assert update.conflicts == ["field 50: instance max 3 -> 7"]
    assert (update.dictionary[50].value_type, update.dictionary[50].instance_id) == ("continuous", 2)
    (tmp_path / "rap").write_text(
        "entity,name,type,coding_name,is_multi_select,title,units\nparticipant,p50_i1,float,,,x,\n"
    )
    assert D.update(tmp_path / "rap").fields["unchanged"] == 1


def test_a_coding_is_replaced_whole_and_counted(tmp_path):
    same = tsv(tmp_path / "same", ("Coding", "Value", "Meaning"), ("9", "0", "Female"), ("9", "1", "Male"))
    other = tsv(tmp_path / "other", ("Coding", "Value", "Meaning"), ("7", "1", "Aye"), ("90001", "1", "x"))
    update = D.update(same, other)
    assert update.codings == {"added": 1, "changed": 1, "unchanged": 1}
    assert update.dictionary.labels[7] == {"1": "Aye"} and D.labels[7] == {"0": "No", "1": "Yes"}
    assert "same: read as Codings" in str(update) and "codings: 1 added, 1 changed, 1 unchanged" in str(
        update
    )


def test_files_that_contradict_each_other_are_named(tmp_path):
    head = ("Coding", "Value", "Meaning")
    one, two = tsv(tmp_path / "one", head, ("7", "1", "Yes")), tsv(tmp_path / "two", head, ("7", "1", "Aye"))
    with pytest.raises(DictionaryError, match="code 1 of coding 7: .*one and two say different things"):
        D.update(one, two)
    assert D.update(one, one).dictionary.labels[7] == {"1": "Yes"}
    one, two = tsv(tmp_path / "one", NEW, new_row()), tsv(tmp_path / "two", NEW, new_row(instance_max=9))
    with pytest.raises(DictionaryError, match="field 50: .*one and two say different things"):
        D.update(one, two)


def test_a_tree_beside_a_list_of_the_same_coding_keeps_the_tree(tmp_path):
    tree = tsv(tmp_path / "coding6.tsv", ("coding", "meaning", "node_id", "parent_id", "selectable"),
               ("-1", "heart", "1", "0", "N"), ("1075", "heart attack", "2", "1", "Y"))  # fmt: skip
    flat = tsv(tmp_path / "flat", ("Coding", "Value", "Meaning"), ("6", "1075", "heart attack"))
    for paths in ((tree, flat), (flat, tree), (tree,)):
        found = D.update(*paths).dictionary
        assert found.labels[6] == {"1075": "heart attack"}
        assert found.nodes.filter(pl.col("coding") == 6).rows() == [
            (6, 1, 0, "-1", "heart", False), (6, 2, 1, "1075", None, True)
        ]  # fmt: skip
        assert found.nodes.filter(pl.col("coding") != 6).equals(D.nodes.filter(pl.col("coding") != 6))


def test_a_coding_that_is_cut_off_is_named(tmp_path):
    sizes = tsv(
        tmp_path / "e", ("encoding_id", "title", "num_members"), ("9", "Sex", "2"), ("7", "Yes/no", "2")
    )
    codes = tsv(
        tmp_path / "c",
        ("encoding_id", "value", "meaning"),
        ("9", "0", "Female"),
        ("7", "0", "No"),
        ("7", "1", "Yes"),
    )
    assert D.update(sizes, codes).conflicts == ["coding 9: 1 of 2 codes were read"]


def test_categories_name_the_fields_of_a_field_txt(tmp_path):
    fields = tsv(tmp_path / "f", (*NEW, "main_category"), (*new_row(), "100010"))
    titles = tsv(
        tmp_path / "t", ("category_id", "title"), ("100010", "Body size"), ("100006", "Physical measures")
    )
    above = tsv(tmp_path / "b", ("parent_id", "child_id"), ("100006", "100010"))
    assert D.update(fields, titles, above).dictionary[50].category == "Physical measures > Body size"
    assert D.update(fields).dictionary[50].category is None  # a number says nothing
    assert (
        describe_field(D.update(above, titles, fields).dictionary[50])["category"]
        == "Physical measures > Body size"
    )


def test_a_dictionary_is_one_file_and_anything_else_is_refused(tmp_path):
    save_dictionary(D, tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    again = load_dictionary(tmp_path / "d")
    assert again.fields == D.fields and again.labels == D.labels and again.nodes.equals(D.nodes)
    save_dictionary(Dictionary(D.fields), tmp_path / "d")
    assert load_dictionary(tmp_path / "d").labels == {} and load_dictionary(tmp_path / "d").nodes.height == 0
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "other")
    (tmp_path / "text").write_text("x")
    for name in ("other", "text", "nowhere"):
        with pytest.raises(DictionaryError, match=f"the dictionary {name}: expected a file"):
            load_dictionary(tmp_path / name)


def test_nothing_heavy_is_imported_or_read_with_the_module():
    code = ("import sys, ukbmm.biobank.table; from ukbmm.biobank import dictionary;"
            "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules), 'heavy'")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_raps_codings_are_read_as_the_showcases(tmp_path):
    (tmp_path / "codings.csv").write_text(
        "coding_name,code,meaning,concept,display_order,parent_code\n"
        'data_coding_9,0,Female,,1,\ndata_coding_90001,7,"grey, or nearly",,1,\nother,x,y,,,\n'
    )
    (tmp_path / "codings.tsv").write_text("Coding\tValue\tMeaning\n9\t0\tFemale\n90001\t7\tgrey, or nearly\n")
    rap, showcase = (D.overlay(None, tmp_path / name).labels for name in ("codings.csv", "codings.tsv"))
    assert rap == showcase and rap[9] == {"0": "Female"} and rap[90001] == {"7": "grey, or nearly"}


@pytest.mark.parametrize("asked", ["p31", 31.7, None, -31])
def test_what_is_no_number_of_a_field_is_refused(asked):
    with pytest.raises(
        DictionaryError, match="expected the number of a field, such as 31, found something else"
    ):
        D[asked]
    assert D["31"] == D[31]


def test_fields_of_no_dictionary_are_an_error_without_a_path(tmp_path):
    with pytest.raises(DictionaryError, match="the dictionary none: expected a file that") as caught:
        load_fields(tmp_path / "none", [31])
    assert str(tmp_path) not in str(caught.value)


def test_a_field_of_a_tree_or_of_unknown_labels_says_what_is_known_and_what_to_read():
    about = D.about(41270)
    assert about["tree"] == "ICD-10 of 286 nodes on 2 levels"
    assert about["codes"] == (
        "titles of ICD-10 belong to others and do not ship; read the showcase's file of coding 19 with `ukbmm dictionary update`"
    )
    assert D.about(20016)["codes"].startswith("labels are not known; read the showcase's file of coding 2536")
    assert D.about(20002)["tree"] == "474 nodes on 5 levels" and "tree" not in D.about(31)


def test_files_of_the_showcase_are_uk_biobanks_words_and_ones_own_table_is_not(tmp_path):
    showcase = tsv(
        tmp_path / "field.txt",
        (*NEW, "main_category"),
        (*new_row(990001, title="New one"), "100081"),
        (*new_row(), "100010"),
    )
    own = tsv(
        tmp_path / "own.tsv",
        OLD,
        ("990002", "Mine", "Integer", "", "", "1", "1"),
        ("21001", "My index", "Integer", "", "", "1", "1"),
    )
    update = D.update(showcase, own)
    assert [update.dictionary[i].source for i in (990001, 50, 990002, 21001)] == ["UK Biobank"] * 2 + [
        "own.tsv"
    ] * 2
    assert (update.dictionary[990001].main_category, update.dictionary[990002].main_category) == (
        100081,
        None,
    )
    assert [field.field_id for field in replaced(update.dictionary, D)] == [
        21001
    ]  # and not 50, which is newer
    (tmp_path / "rap").write_text("entity,name,type,coding_name,is_multi_select,title,units\n"
                                  "participant,p990003_i0_a0,integer,,,Two levels | Instance 0 | Array 0,\n"
                                  "participant,p990003_i1_a1,integer,,,Two levels | Instance 1 | Array 1,\n")  # fmt: skip
    rap = D.update(tmp_path / "rap").dictionary[990003]
    assert rap.source == "UK Biobank"
    assert (
        describe_field(rap)["measured"]
        == "occasions 0 to 1, of which kind the showcase's field.txt says, up to 2 values each"
    )


def test_a_dictionary_that_was_written_before_a_property_was_added_is_read(tmp_path):
    save_dictionary(D, tmp_path / "d.parquet")
    pl.read_parquet(tmp_path / "d.parquet").drop("main_category").write_parquet(tmp_path / "old.parquet")
    old = load_dictionary(tmp_path / "old.parquet")
    assert old[50].main_category is None and old[50].title == D[50].title
    assert load_fields(tmp_path / "old.parquet", [50]) == {50: old[50]}
