"What special values mean is decided by coding and value, and agrees with the labels of the codings."

import csv
import gzip
import re

import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank.cleaning import MISSING_KINDS, clean_column, missing_table, rules_for
from ukbmm.biobank.dictionary import Dictionary, Field, special_values

D = Dictionary.builtin()

# words that a label must hold for its value to be of a kind
LABELS = {
    "do_not_know": "not know|unknown|not sure|not remember|cannot remember|not known|uncertain",
    "prefer_not_to_answer": "prefer(red)? not to answer",
    "not_asked": "not asked",
    "not_applicable": "not applicable|not employed|do not|never went to school|excluded from|ongoing"
    "|didn't use",
    "not_measured": "not performed|not completed|cannot be measured|abandoned|problem|invalid|could not|not pressed"
    "|miscellaneous|varied",
    "number": "less than",
}


@pytest.fixture(scope="module")
def labels():
    with gzip.open(shared_data("ukb_metadata/tofu_encodings.csv.gz"), "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {(int(row["encoding_id"]), row["value"]): row["meaning"] for row in rows}


@pytest.mark.parametrize("kind", LABELS)
def test_every_special_value_has_a_label_that_says_so(labels, kind):
    table = special_values().filter(pl.col("kind") == kind)
    known = {key: labels[key] for key in table.select("coding", "value").iter_rows() if labels.get(key)}
    assert len(known) >= {"not_asked": 2, "not_applicable": 10, "number": 11, "not_measured": 20}.get(
        kind, 100
    )
    wrong = {key: label for key, label in known.items() if not re.search(LABELS[kind], label.lower())}
    assert not wrong


def test_no_negative_code_labelled_as_unanswered_is_taken_for_a_value(labels):
    special = set(special_values().select("coding", "value").iter_rows())
    used = {field.coding for field in D.fields.values()}
    said = re.compile(r"(do not know|prefer not to answer|unknown|not known)( \(group .\))?", re.I)
    kept = {
        key: label
        for key, label in labels.items()
        if key[0] in used and key[1].startswith("-") and said.fullmatch(label) and key not in special
    }
    assert not kept


def test_the_same_value_means_different_things_in_different_codings():
    raw = pl.Series("x", [-1, -3, -10, 2], dtype=pl.Int64)
    television = clean_column(raw, D[1070])  # coding 100329
    assert television.values.to_list() == [None, None, 0.5, 2.0]
    assert [MISSING_KINDS[kind] for kind in television.kinds] == [
        "do_not_know", "prefer_not_to_answer", "present", "present",
    ]  # fmt: skip
    batch = clean_column(raw.cast(pl.Int32), D[22000])  # genotyping batch: -1 to -11 are batches
    assert batch.values.to_list() == [-1, -3, -10, 2] and batch.kinds.to_list() == [0] * 4


def test_negative_numbers_without_a_coding_are_values():
    townsend = clean_column(pl.Series("p22189", [-1.0, -3.0, None, 2.5]), D[22189])
    assert townsend.values.to_list() == [-1.0, -3.0, None, 2.5]
    assert townsend.kinds.to_list() == [0, 0, 1, 0]


def test_less_than_one_is_a_number_in_every_field_that_has_it():
    fields = [f for f in D.fields.values() if f.is_number and rules_for(f).numbers]
    assert len(fields) > 25
    for field in fields:
        code = next(iter(rules_for(field).numbers))
        done = clean_column(pl.Series("x", [code, 3]).cast(field.dtype), field)
        assert done.values.to_list() == [0.5, 3.0] and done.kinds.to_list() == [0, 0]


@pytest.mark.parametrize("field_id", [31, 50, 20116, 1070, 41270, 53, 40001, 20002])
def test_cleaning_keeps_names_lengths_and_plain_values(field_id):
    field = D[field_id]
    dtype = pl.List(field.dtype) if field.value_type == "categorical_multiple" else field.dtype
    raw = pl.Series("c", [None] * 3, dtype=dtype)
    done = clean_column(raw, field)
    assert done.values.name == done.kinds.name == "c"
    assert done.values.null_count() == 3 and done.kinds.to_list() == [1, 1, 1]
    assert done.kinds.dtype == pl.UInt8


def test_dates_texts_and_lists_pass_as_they_are():
    import datetime

    day = datetime.date(2006, 3, 13)
    assert clean_column(pl.Series("d", [day, None]), D[53]).values.to_list() == [day, None]
    assert clean_column(pl.Series("t", ["I10", None]), D[40001]).values.to_list() == ["I10", None]
    lists = clean_column(pl.Series("l", [[1065, 1473], None]), D[20002])
    assert lists.values.to_list() == [[1065, 1473], None] and lists.kinds.to_list() == [0, 1]


def test_a_table_of_ones_own_decides():
    table = pl.DataFrame(
        {
            "coding": [5, 5, 6],
            "value": ["-7", "x", "-7"],
            "kind": ["redacted", "redacted", "not_asked"],
            "number": [None] * 3,
        },
        schema_overrides={"number": pl.Float64},
    )
    field = Field(90100, "own", "integer", coding=5)
    done = clean_column(pl.Series("x", [-7, -1, None], dtype=pl.Int64), field, table)
    assert done.values.to_list() == [None, -1, None]
    assert [MISSING_KINDS[kind] for kind in done.kinds] == ["redacted", "present", "empty"]


def test_cleaning_agrees_with_pandas_on_random_codes():
    import numpy as np
    import pandas as pd

    raw = np.random.default_rng(1).choice([-10, -3, -1, 0, 1, 2, 8], 500)
    expected = pd.Series(raw, dtype=float).replace({-10: 0.5, -3: np.nan, -1: np.nan})
    done = clean_column(pl.Series("x", raw), D[1070])
    assert np.array_equal(done.values.to_numpy(), expected.to_numpy(), equal_nan=True)


def test_missing_kinds_are_counted_with_small_counts_hidden():
    raw = pl.Series("p1070_i0", [2] * 60 + [-1] * 10 + [-3] * 20 + [None] * 10, dtype=pl.Int64)
    table = missing_table({"p1070_i0": clean_column(raw, D[1070])})
    assert table.rows(named=True) == [
        {
            "column": "p1070_i0",
            "present": "60%",
            "empty": "10",
            "do_not_know": "10",
            "prefer_not_to_answer": "20",
        }
    ]


def test_only_kinds_that_occur_are_columns():
    full = clean_column(pl.Series("a", [1, 2], dtype=pl.Int64), D[34])
    assert missing_table({"a": full}).rows() == [("a", "100%")]
