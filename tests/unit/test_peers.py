"What FUNPACK 4.0.1 loses or leaves in (seen by running it), and is read right here: four failures, on invented rows."

import datetime

import polars as pl
import pytest

from ukbmm.biobank.cleaning import MISSING_KINDS
from ukbmm.biobank.store import ingest


def cleaned(tmp_path, text: str) -> dict[str, tuple[list, list[str]]]:
    "Values and kinds of every column of a table."
    (tmp_path / "table.csv").write_text(text)
    biobank = ingest(tmp_path / "table.csv", tmp_path / "biobank")
    found = biobank.clean(biobank.columns)
    return {
        name: (column.values.to_list(), [MISSING_KINDS[kind] for kind in column.kinds])
        for name, column in found.items()
    }


def test_json_arrays_are_read_and_not_dropped(tmp_path):
    found = cleaned(tmp_path, 'eid,p20002_i0,p41270\n1000001,"[1065,1473]","[""I10"",""E119""]"\n1000002,,\n')
    assert found["p20002_i0"] == ([[1065, 1473], None], ["present", "empty"])
    assert found["p41270"] == ([["I10", "E119"], None], ["present", "empty"])


def test_labels_of_an_export_with_replace_become_codes_and_not_nothing(tmp_path):
    text = "eid,p31,p20116_i0,p1160_i0\n1000001,Male,Current,7\n1000002,Female,Prefer not to answer,Do not know\n"
    found = cleaned(tmp_path, text)
    assert found["p31"] == ([1, 0], ["present"] * 2)
    assert found["p20116_i0"] == ([2, None], ["present", "prefer_not_to_answer"])
    assert found["p1160_i0"] == ([7.0, None], ["present", "do_not_know"])


@pytest.mark.parametrize("prefix", ["participant.", ""])
def test_rules_for_missing_values_hold_under_the_prefix_of_an_entity_too(tmp_path, prefix):
    found = cleaned(tmp_path, f"{prefix}eid,{prefix}p1160_i0\n1000001,-3\n1000002,8\n1000003,-1\n")
    assert found["p1160_i0"] == ([None, 8.0, None], ["prefer_not_to_answer", "present", "do_not_know"])


def test_placeholders_among_dates_of_diagnosis_are_no_diagnoses(tmp_path):
    days = ["1909-09-09", "2037-07-07", "1900-01-01", "1902-02-02", "2011-05-06"]
    rows = "".join(f"{1000001 + i},{day}\n" for i, day in enumerate(days))
    values, kinds = cleaned(tmp_path, "eid,p131286\n" + rows)["p131286"]
    assert values == [None, None, None, None, datetime.date(2011, 5, 6)]
    assert kinds == ["placeholder", "placeholder", "occurred_date_unknown", "from_birth", "present"]


def test_dates_of_coding_691_have_their_rules_as_those_of_586(tmp_path):
    from ukbmm.biobank.dictionary import Dictionary

    fields = [
        f
        for f in Dictionary.builtin().fields.values()
        if f.coding == 691 and f.dtype == pl.Date and not f.instanced
    ]
    name = f"p{fields[0].field_id}"
    values, kinds = cleaned(
        tmp_path, f"eid,{name}\n1000001,1910-01-01\n1000002,1920-01-01\n1000003,1975-02-03\n"
    )[name]
    assert values == [None, None, datetime.date(1975, 2, 3)]
    assert kinds == ["prefer_not_to_answer", "do_not_know", "present"]
