"What special values mean is decided by coding and value, and agrees with the labels of the codings."

import csv
import datetime
import gzip
import re

import numpy as np
import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank.cleaning import (
    MISSING_KINDS,
    OCCURRED,
    check_special_values,
    clean_column,
    clean_columns,
    clean_expressions,
    in_order,
    read_special_values,
    recode,
    rules_for,
)
from ukbmm.biobank.dictionary import Dictionary, Field, special_values
from ukbmm.core import DictionaryError

D = Dictionary.builtin()

# words that a label must hold for its value to be of a kind
LABELS = {
    "do_not_know": "not know|unknown|not sure|unsure|not remember|cannot remember|not known|uncertain|not specified",
    "prefer_not_to_answer": "prefer(red)? not to answer",
    "not_asked": "not asked",
    "not_applicable": "not applicable|not employed|do not|never went to school|excluded from|ongoing"
    "|didn't use|never had|only had|still taking|given up work",
    "not_measured": "error|skipped|not tested|not performed|not completed|cannot be measured|abandon|problem|invalid|could not|not pressed"
    "|miscellaneous|varied",
    "number": "less than|unable to walk|more than a month",
    "none_of_the_above": "none of the above",
    "uncountable": "too many|irregular|all my life|age \\[in years",
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
    assert len(known) >= {"not_asked": 2, "not_applicable": 15, "number": 13, "not_measured": 20, "none_of_the_above": 30,
                           "uncountable": 5}.get(kind, 100)  # fmt: skip
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


@pytest.mark.parametrize(
    ("field_id", "code", "kind"),
    [(4041, -2, "not_applicable"), (5324, 5, "do_not_know"), (3082, 2, "do_not_know"), (4232, 9, "not_measured"),
     (12187, 6, "not_measured"), (4081, 4, "not_measured"), (41278, "X", "do_not_know"), (20240, -1, "not_measured"),
     (32223, -997, "redacted"), (22688, -997, "redacted"),
     (2724, 3, "present"), (20246, 1, "present"), (20041, 100, "present"), (20189, 4, "present")],
)  # fmt: skip
def test_codes_whose_labels_read_like_no_value_are_what_somebody_who_looked_says(field_id, code, kind):
    done = clean_column(pl.Series("x", [code, None]).cast(D[field_id].dtype), D[field_id])
    assert MISSING_KINDS[done.kinds[0]] == kind and (done.values[0] is None) == (kind != "present")


def test_a_list_of_nothing_but_do_not_know_is_no_answer():
    addiction = clean_column(pl.Series("x", [[4], [2, 4], [-818]], dtype=pl.List(pl.Int32)), D[20551])
    assert addiction.values.to_list() == [None, [2], None] and addiction.kinds.to_list() == [2, 0, 3]


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
    fields = [f for f in D.fields.values() if f.is_number and 0.5 in rules_for(f).numbers.values()]
    assert len(fields) > 25
    for field in fields:
        (code,) = [code for code, number in rules_for(field).numbers.items() if number == 0.5]
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


def test_every_row_of_the_table_has_a_coding_of_the_dictionary_and_a_source():
    table = special_values()
    used = {field.coding for field in D.fields.values()}
    assert set(table["source"].str.extract("^(FUNPACK|showcase|nothing taken)")) == {
        "FUNPACK",
        "showcase",
        "nothing taken",
    }
    assert (
        table.filter(~pl.col("coding").is_in(list(used)), ~pl.col("source").str.starts_with("FUNPACK")).height
        == 0
    )
    assert (table["number"].is_not_null() == table["kind"].is_in(["number", "order"])).all()


DATES = {  # hand-copied from the showcase's page of each coding: which of its dates say what
    (819, 130708): {"occurred": ["1900-01-01", "1901-01-01", "1902-02-02", "1903-03-03"], "nothing": ["1909-09-09", "2037-07-07"]},
    (272, 42000): {"occurred": ["1900-01-01"], "nothing": []},
    (586, 21046): {"occurred": [], "nothing": ["1910-01-01", "1920-01-01", "1930-01-01"]},
    (691, 29157): {"occurred": [], "nothing": ["1910-01-01", "1920-01-01"]},
    (1273, 27984): {"occurred": [], "nothing": ["1900-01-01", "1999-01-01"]},
    (1313, 22700): {"occurred": [], "nothing": ["1904-04-04"]},
    (1345, 28146): {"occurred": [], "nothing": ["1900-01-01", "1902-01-01"]},
    (1642, 27989): {"occurred": [], "nothing": ["1999-01-01"]},
    (439, 3166): {"occurred": ["1900-01-01"], "nothing": []},
    (1439, 24609): {"occurred": [], "nothing": ["1900-01-01", "1999-01-01"]},
}  # fmt: skip


@pytest.mark.parametrize(("key", "said"), DATES.items(), ids=[f"coding {key[0]}" for key in DATES])
def test_special_dates_are_no_dates_and_those_that_say_it_happened_say_so(key, said):
    field, every = D[key[1]], [*said["occurred"], *said["nothing"], "2011-05-17"]
    assert field.coding == key[0]
    raw = pl.Series("x", every).str.to_date().cast(field.dtype)
    done = clean_column(raw, field)
    assert done.values.null_count() == len(every) - 1 and done.values[-1] == raw[-1]
    assert done.kinds.is_in(OCCURRED).to_list() == [True] * len(said["occurred"]) + [False] * (
        len(said["nothing"]) + 1
    )
    assert (done.kinds[:-1] > 1).all()
    if field.dtype == pl.Datetime:  # at whatever time of the day
        later = clean_column(raw + datetime.timedelta(hours=7), field)
        assert later.kinds.to_list() == done.kinds.to_list()


def test_lists_keep_what_was_chosen_and_an_empty_answer_is_not_a_missing_one():
    heart = D[6150]  # coding 100605: -7 none of the above, -3 prefer not to answer
    raw = pl.Series("l", [[1, 4], [-7], [-3], None, [], [4, -3], [-7, 2], [None]], dtype=pl.List(pl.Int32))
    done = clean_column(raw, heart)
    assert done.values.to_list() == [[1, 4], [], None, None, None, [4], [2], None]
    assert [MISSING_KINDS[kind] for kind in done.kinds] == [
        "present", "present", "prefer_not_to_answer", "empty", "empty", "present", "present", "empty",
    ]  # fmt: skip
    assert done.values.dtype == pl.List(pl.Int32) and done.kinds.dtype == pl.UInt8


def test_lists_agree_with_plain_python_on_random_answers():
    import numpy as np

    chance = np.random.default_rng(0)
    codes = [-7, -3, -1, 1, 2, 3, 4]  # field 6155 has no -1; it is then a code like any other
    raw = [None if chance.random() < 0.1 else list(map(int, chance.choice(codes, chance.integers(0, 4), False))) for _ in range(400)]  # fmt: skip
    expected = []
    for answer in raw:
        kept = [code for code in answer or [] if code not in (-7, -3)]
        expected.append(kept if kept or -7 in (answer or []) else None)
    done = clean_column(pl.Series("l", raw, dtype=pl.List(pl.Int32)), D[6155])
    assert done.values.to_list() == expected
    assert (done.kinds == 0).to_list() == [answer is not None for answer in expected]


@pytest.mark.parametrize(
    ("field_id", "codes", "expected"),
    [
        (1558, [1, 2, 6, -3], [5, 4, 0, None]),  # daily, three or four times a week, never
        (2178, [1, 4], [4, 1]),  # overall health: excellent, poor
        (1249, [4, 1], [0, 3]),  # never smoked, most days
        (104920, [0, 1, 1200], [0, 0.5, 13.5]),  # hours of light activity: none, under one, 12 and more
        (102270, [444, 555, 500, 0], [0.25, 0.5, 5, 0]),  # chocolate: quarter, half, 5+, none taken
        (924, [3, 1, -7], [3, 1, None]),  # walking pace: brisk, slow, none of the above
        (738, [1, 5, -1], [1, 5, None]),  # household income
        (21028, [-500, -504, 7], [0, 4, None]),  # never, always, a code that is not in the table
    ],
)
def test_codes_in_order_by_hand(field_id, codes, expected):
    raw = pl.Series("x", codes, dtype=pl.Int32)
    assert in_order(clean_column(raw, D[field_id]).values, D[field_id]).to_list() == expected


@pytest.mark.parametrize("field_id", [54, 31, 1647, 20002])
def test_codes_without_an_order_are_refused(field_id):
    with pytest.raises(DictionaryError, match="expected a coding whose codes have an order"):
        in_order(pl.Series("x", [1]), D[field_id])


def test_amounts_of_the_diet_agree_with_their_labels():
    words = {"half": 0.5, "quarter": 0.25, "varied": 0.5}
    checked = 0
    for coding in (*range(100001, 100008), 100016, 100017):
        orders = {v: n for c, v, k, n, _ in special_values().iter_rows() if c == coding and k == "order"}
        for code, label in D.labels[coding].items():
            if code in orders:
                assert orders[code] == words.get(
                    label, float(label.rstrip("+")) if label[0].isdigit() else None
                )
                checked += 1
    assert checked > 40


def write(path, *rows):
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_ones_own_rows_stand_before_the_shipped_ones_and_present_takes_one_out(tmp_path):
    rows = [("coding", "value", "kind", "number"), ("100329", "-10", "number", "0.25"), ("100329", "-1", "present", ""),
            ("90001", "-9", "redacted", "")]  # fmt: skip
    table = read_special_values(write(tmp_path / "own.tsv", *rows))
    assert table.height == special_values().height + 1  # one is new, two take the place of shipped ones
    done = clean_column(pl.Series("x", [-10, -1, -3, 4]), D[1070], table)
    assert done.values.to_list() == [0.25, -1.0, None, 4.0] and done.kinds.to_list() == [0, 0, 3, 0]
    own = Field(90100, "own", "integer", coding=90001)
    assert clean_column(pl.Series("x", [-9]), own, table).kinds.to_list() == [MISSING_KINDS.index("redacted")]
    again = read_special_values(
        write(tmp_path / "b.tsv", ("coding", "value", "kind"), ("90001", "-9", "present")), table
    )
    assert again.height == table.height and again.schema == special_values().schema
    assert clean_column(pl.Series("x", [-9]), own, again).kinds.to_list() == [0]
    (tmp_path / "c.csv").write_text("value,coding,kind\n-9,5,redacted\n")
    assert read_special_values(tmp_path / "c.csv").filter(source="c.csv").height == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("5", "-1", "redactd", ""), "line 3: expected a kind of special value, found an unknown one. Did you mean 'redacted'"),
        (("five", "-1", "redacted", ""), "line 3: expected the number of a coding, and a value"),
        (("5", "", "redacted", ""), "line 3: expected the number of a coding, and a value"),
        (("5", "-1", "number", ""), "line 3: expected a number with the kind number, found none"),
        (("5", "-1", "number", "half"), "line 3: expected a number with the kind number, found none"),
        (("5", "-1", "redacted", "1"), "line 3: expected no number with the kind redacted"),
        (("5", "-9", "redacted", ""), "line 3: expected each value of a coding once"),
    ],
)  # fmt: skip
def test_a_bad_row_of_ones_own_table_is_named_with_its_line(tmp_path, row, message):
    rows = [("coding", "value", "kind", "number"), ("5", "-9", "redacted", ""), row]
    with pytest.raises(DictionaryError, match=f"own.tsv, {message}"):
        read_special_values(write(tmp_path / "own.tsv", *rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("100329", "many", "uncountable", ""),
            "line 3: expected a value that a field of this coding can have",
        ),
        (("819", "1902", "from_birth", ""), "line 3: expected a value that a field of this coding can have"),
        (
            ("9999999", "-1", "do_not_know", ""),
            "line 3: expected a coding that a field has, found coding 9999999",
        ),
    ],
)
def test_a_row_that_can_mean_nothing_is_named_with_its_line(tmp_path, row, message):
    path = write(
        tmp_path / "own.tsv", ("coding", "value", "kind", "number"), ("100329", "-1", "redacted", ""), row
    )
    with pytest.raises(DictionaryError, match=message):
        check_special_values(path, Dictionary.builtin())


def test_what_is_no_table_of_special_values_is_refused(tmp_path):
    with pytest.raises(DictionaryError, match="found no column kind"):
        read_special_values(write(tmp_path / "own.tsv", ("coding", "value"), ("5", "1")))
    with pytest.raises(DictionaryError, match="something else or no file"):
        read_special_values(tmp_path / "nothing.tsv")


def test_cleaning_agrees_with_pandas_on_random_codes():
    import numpy as np
    import pandas as pd

    raw = np.random.default_rng(1).choice([-10, -3, -1, 0, 1, 2, 8], 500)
    expected = pd.Series(raw, dtype=float).replace({-10: 0.5, -3: np.nan, -1: np.nan})
    done = clean_column(pl.Series("x", raw), D[1070])
    assert np.array_equal(done.values.to_numpy(), expected.to_numpy(), equal_nan=True)


def test_expressions_for_many_columns_say_what_cleaning_each_of_them_says():
    frame = pl.DataFrame(
        {
            "p1070_i0": pl.Series([2, -10, -1, None], dtype=pl.Int64),
            "p6150_i0": pl.Series([[1, -3], [-7], [-3], []], dtype=pl.List(pl.Int32)),
            "p41202": pl.Series([["I10"], [None], None, ["E11", "I10"]], dtype=pl.List(pl.String)),
            "p130708": pl.Series([datetime.date(1900, 1, 1), datetime.date(2010, 2, 3), datetime.date(2037, 7, 7), None]),
            "p3166_i0_a0": pl.Series([datetime.datetime(1900, 1, 1, 7), datetime.datetime(2008, 1, 1), None, None]),
        }
    )  # fmt: skip
    fields = {name: D[int(re.match(r"p(\d+)", name)[1])] for name in frame.columns}
    both = {name: clean_expressions(name, frame.schema[name], field, rules_for(field)) for name, field in fields.items()}  # fmt: skip
    values, kinds = (frame.select(**{name: of[i] for name, of in both.items()}) for i in (0, 1))
    for name, field in fields.items():
        done = clean_column(frame[name], field)
        assert done.values.equals(values[name]) and done.kinds.equals(kinds[name])
    assert kinds.dtypes == [pl.UInt8] * 5
    assert [[MISSING_KINDS[kind] for kind in kinds[name]] for name in kinds.columns] == [
        ["present", "present", "do_not_know", "empty"],
        ["present", "present", "prefer_not_to_answer", "empty"],
        ["present", "empty", "empty", "present"],
        ["occurred_date_unknown", "present", "placeholder", "empty"],
        ["occurred_date_unknown", "present", "empty", "empty"],
    ]


def test_a_list_of_several_kinds_of_missing_has_the_one_that_says_most():
    field = next(field for field in D.fields.values() if field.value_type == "categorical_multiple"
                 and {-1, -3} <= rules_for(field).kinds.keys())  # fmt: skip
    raw = pl.Series("l", [[-1, -3], [-3, -1], [-1], [None, -1]], dtype=pl.List(pl.Int32))
    done = clean_column(raw, field)
    assert done.kinds.to_list() == [3, 3, 2, 2] and done.values.null_count() == 4


def test_a_matrix_is_recoded_as_its_columns_are_cleaned():
    dictionary, columns, fields = Dictionary.builtin(), {}, {}
    for field in dictionary.fields.values():
        rules = rules_for(field)
        if field.is_number and (rules.kinds or rules.numbers) and field.coding not in fields:
            special = [*rules.kinds, *rules.numbers]
            columns[f"p{field.field_id}"] = pl.Series([*special, 0, 1, 7, None], dtype=field.dtype)
            fields[field.coding] = field
    longest = max(map(len, columns.values()))
    columns = {name: column.extend_constant(None, longest - len(column)) for name, column in columns.items()}
    fields = dict(zip(columns, fields.values(), strict=True))
    cleaned = clean_columns(pl.DataFrame(columns), fields)
    for dtype in (np.float32, np.float64):
        expected = np.stack(
            [one.values.cast(pl.Float64).fill_null(np.nan).to_numpy() for one in cleaned.values()]
        )
        raw = np.stack([column.cast(pl.Float64).fill_null(np.nan).to_numpy() for column in columns.values()])
        matrix = np.ascontiguousarray(raw.T, dtype)
        known = recode(matrix, [rules_for(field) for field in fields.values()])
        np.testing.assert_array_equal(matrix, expected.T.astype(dtype))
        np.testing.assert_array_equal(known, ~np.isnan(expected).all(axis=0))
    assert len(columns) >= 50 and (matrix[:1] != raw.T[:1]).sum() > 20


@pytest.mark.parametrize(
    ("field_id", "values", "message"),
    [(1070, ["-3", "2"], "column x: expected numbers, as field 1070 .* has, found values of type String"),
     (130708, ["1900-01-01"], "column x: expected dates, as field 130708"), (41278, [1], "column x: expected text, as field 41278"),
     (6150, [["1"]], "column x: expected numbers, as field 6150")],
)  # fmt: skip
def test_a_column_of_another_type_than_its_field_is_refused(field_id, values, message):
    with pytest.raises(DictionaryError, match=message):
        clean_column(pl.Series("x", values), D[field_id])
    with pytest.raises(DictionaryError, match=message):
        clean_expressions("x", pl.Series("x", values).dtype, D[field_id], rules_for(D[field_id]))


def test_columns_without_a_field_and_lists_in_order_are_refused():
    with pytest.raises(DictionaryError, match="column p31: expected its field among `fields`, found none"):
        clean_columns(pl.DataFrame({"p31": [1]}), {})
    with pytest.raises(DictionaryError, match="one code for each participant, found lists of codes"):
        in_order(pl.Series("x", [[1, 2]]), D[1558])
    assert clean_column(pl.Series("x", [None, None]), D[1070]).kinds.to_list() == [
        1,
        1,
    ]  # nothing at all has every type
