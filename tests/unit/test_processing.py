"""Filling, reducing and multi-hot against pandas, numpy and hand-worked answers."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ukbmm.biobank.cleaning import MISSING_KINDS, Cleaned, clean_column, in_order
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.names import parse_name
from ukbmm.biobank.processing import (
    MultiHot,
    as_list,
    describe_codes,
    fill_children,
    parent_columns,
    parents,
    parse_condition,
    read_parents,
    reduce_columns,
    roll_up,
    unpack_bits,
)
from ukbmm.core import DictionaryError, TableError

D = Dictionary.builtin()


def column(name: str, values: list) -> Cleaned:
    "A raw column of a field, cleaned."
    field = D[parse_name(name)[0].field_id]
    dtype = pl.List(field.dtype) if field.value_type == "categorical_multiple" else field.dtype
    return clean_column(pl.Series(name, values, dtype=dtype), field)


def kinds(cleaned: Cleaned) -> list[str]:
    return [MISSING_KINDS[kind] for kind in cleaned.kinds]


def test_every_row_of_the_table_is_about_fields_of_the_dictionary():
    for child, condition, value, source in parents().iter_rows():
        field = D[child]
        several = field.value_type == "categorical_multiple"
        assert source and (value is None or (value == "[]") == several)
        for clause in parse_condition(condition):
            parent = D[clause.field_id]
            assert clause.field_id != child
            assert not parent.instanced or (parent.instance_id, field.instanced) == (field.instance_id, True)
            assert (clause.sign in ("has", "lacks")) == (parent.value_type == "categorical_multiple")
            if clause.sign in ("==", "has", "lacks") and parent.is_category and parent.coding in D.labels:
                code = clause.number if isinstance(clause.number, str) else str(int(clause.number))
                assert code in D.labels[parent.coding]


def test_a_food_that_was_not_ticked_has_a_zero_that_has_its_place_in_the_order():
    diet = parents().filter(pl.col("child") >= 100000, pl.col("value") == "0")
    assert diet.height > 150
    for child in diet["child"]:
        assert in_order(pl.Series("x", [0], dtype=pl.Int32), D[child]).to_list() == [0.0]


FILLED = [  # child, its raw values, parents by name, what is expected, kinds
    ("p3456_i0", [None, None, 10, -1], {"p1239_i0": [0, 1, 1, 0]}, [0, None, 10, None],
     ["present", "empty", "present", "do_not_know"]),
    ("p3456_i0", [None, None], {"p20116_i0": [0, -3]}, [0, None], ["present", "empty"]),
    ("p2867_i0", [None, None, 17], {"p20116_i0": [0, 1, 1]}, [None, None, 17], ["not_asked", "empty", "present"]),
    ("p1568_i0", [None, None, None, 3], {"p1558_i0": [6, 4, 1, 1]}, [0, None, None, 3],
     ["present", "not_asked", "empty", "present"]),
    ("p874_i0", [None, 30, None, None], {"p864_i0": [0, 3, 4, -2]}, [0, 30, None, 0],
     ["present", "present", "empty", "present"]),
    ("p757_i0", [None, 4, None], {"p6142_i0": [[2], [1, 6], None]}, [None, 4, None], ["not_asked", "present", "empty"]),
    ("p20002_i0", [None, [1065], None], {"p135_i0": [0, 1, 2]}, [[], [1065], None], ["present", "present", "empty"]),
    ("p3799_i0", [None, 1, None, None], {"p6159_i0": [[-7], [1], [8], [-3]]}, [0, 1, None, None],
     ["present", "present", "empty", "empty"]),
    ("p100250_i2", [None, 555, None, None], {"p100240_i2": [1, 1, 0, None]}, [0, 555, 0, None],
     ["present", "present", "present", "empty"]),
    ("p30500_i1", [None, None, 9.5, None], {"p30505_i1": ["<6.7", None, "<6.7", "?"]}, [None, None, 9.5, None],
     ["below_detection", "empty", "present", "empty"]),
    ("p30530_i0", [None, None], {"p30535_i0": ["<10", ">400"]}, [None, None], ["below_detection", "empty"]),
    ("p2734_i1", [None, 2], {"p31": [1, 0]}, [None, 2], ["not_asked", "present"]),
]  # fmt: skip


@pytest.mark.parametrize(("child", "raw", "given", "expected", "why"), FILLED, ids=[row[0] for row in FILLED])
def test_filling_by_hand(child, raw, given, expected, why):
    columns = {child: column(child, raw), **{name: column(name, values) for name, values in given.items()}}
    done = fill_children(columns)
    assert done[child].values.to_list() == expected and kinds(done[child]) == why
    assert done[child].values.dtype == columns[child].values.dtype and done[child].values.name == child
    for name in given:
        assert done[name].values.to_list() == columns[name].values.to_list()
    assert parent_columns(child, list(given)) == list(given)


def test_a_parent_of_another_occasion_says_nothing():
    columns = {"p3456_i1": column("p3456_i1", [None]), "p1239_i0": column("p1239_i0", [0])}
    assert fill_children(columns)["p3456_i1"].values.to_list() == [None]
    assert parent_columns("p3456_i1", ["p1239_i0", "p20116_i0"]) == []


def test_both_parts_of_a_condition_must_hold_and_both_parents_must_be_there():
    table = pl.DataFrame(
        {"child": [3456], "condition": ["1239 == 0 and 1249 == 4"], "value": ["0"], "source": ["me"]}
    )
    columns = {"p3456_i0": column("p3456_i0", [None] * 3), "p1239_i0": column("p1239_i0", [0, 0, 1])}
    assert fill_children(columns, table)["p3456_i0"].values.to_list() == [None] * 3
    columns["p1249_i0"] = column("p1249_i0", [4, 1, 4])
    assert fill_children(columns, table)["p3456_i0"].values.to_list() == [0, None, None]


@pytest.mark.parametrize("text", ["", "1239", "1239 = 0", "x == 1", "1239 == a", "1239 == 0 or 1249 == 4", "print(1)",
                                  "1239 == 0 and", "1239 == 0; 1", "1239 >= 'x'", "1239 == 'x"])  # fmt: skip
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(DictionaryError, match="expected comparisons such as"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("condition", "found"),
    [("1239 has 1", "values of type Int32"), ("1239 == 'x'", "values of type Int32"), ("6142 == 2", r"values of type List\(Int32\)"),
     ("40001 == 1", "values of type String"), ("53 >= 3", "values of type Date"), ("41270 has 1", r"values of type List\(String\)")],
)  # fmt: skip
def test_a_comparison_that_a_column_cannot_answer_is_an_error_of_the_table(condition, found):
    name = {"1239": "p1239_i0", "6142": "p6142_i0", "40001": "p40001_i0", "53": "p53_i0", "41270": "p41270"}[
        condition.split()[0]
    ]
    columns = {"p3456_i0": column("p3456_i0", [None]), name: column(name, [None])}
    table = pl.DataFrame({"child": [3456], "condition": [condition], "value": ["0"]})
    with pytest.raises(DictionaryError, match=found):
        fill_children(columns, table)


def test_ones_own_table_takes_the_place_of_the_rows_of_its_children(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("child\tcondition\tvalue\n3456\t1249 >= 3\t0\n3456\t1239 == 0\t\n90100\t31 == 1\t[]\n")
    table = read_parents(path)
    assert table.filter(child=3456).select("condition", "value").rows() == [
        ("1249 >= 3", "0"),
        ("1239 == 0", None),
    ]
    assert table.height == parents().height - 2 + 3 and table.schema == parents().schema
    path.write_text("child\tcondition\tvalue\n3456\t1249 >= 3\tnone\n")
    with pytest.raises(DictionaryError, match=r"own.tsv, line 2: expected the number of a field"):
        read_parents(path)
    path.write_text("field\tcondition\n")
    with pytest.raises(DictionaryError, match="columns child, condition, value"):
        read_parents(path)


@pytest.mark.parametrize(
    ("how", "reference"),
    [("mean", np.nanmean), ("max", np.nanmax), ("min", np.nanmin),
     ("first", lambda x, axis: pd.DataFrame(x).bfill(axis=1)[0]),
     ("last", lambda x, axis: pd.DataFrame(x).ffill(axis=1).iloc[:, -1])],
)  # fmt: skip
def test_reductions_equal_numpy_and_pandas(how, reference):
    chance = np.random.default_rng(0)
    values = np.where(chance.random((300, 4)) < 0.3, np.nan, chance.normal(size=(300, 4)))
    values = values[~np.isnan(values).all(axis=1)]
    columns = [Cleaned(pl.Series(f"p1_i0_a{i}", part).fill_nan(None), pl.Series(np.isnan(part).astype(np.uint8)))
               for i, part in enumerate(values.T)]  # fmt: skip
    found = reduce_columns(columns, how)
    np.testing.assert_allclose(found.values.to_numpy(), reference(values, axis=1))
    assert (found.kinds == 0).all() and found.values.name == "p1_i0_a0"


def test_what_is_missing_everywhere_keeps_the_reason_that_says_most():
    columns = [column("p1070_i0", [None, None, -1, -1]), column("p1070_i1", [-3, None, None, 2])]
    done = reduce_columns(columns, "last")
    assert done.values.to_list() == [None, None, None, 2.0]
    assert kinds(done) == ["prefer_not_to_answer", "empty", "do_not_know", "present"]


def test_lists_and_texts_have_a_first_and_a_last_and_no_mean():
    lists = [column("p20002_i0", [[1065], None]), column("p20002_i1", [[1473], [1111]])]
    assert reduce_columns(lists, "first").values.to_list() == [[1065], [1111]]
    for how in ("mean", "max", "median"):
        with pytest.raises(TableError, match="first or last"):
            reduce_columns(lists, how)


def random_answers(n: int, codes: list, seed: int) -> pl.Series:
    chance = np.random.default_rng(seed)
    answers = [
        None if chance.random() < 0.1 else list(chance.choice(codes, chance.integers(0, 5))) for _ in range(n)
    ]
    return pl.Series("x", answers, dtype=pl.List(pl.String if isinstance(codes[0], str) else pl.Int32))


@pytest.mark.parametrize(
    "codes", [list(range(1000, 1070)), [f"I{i}" for i in range(25)], list(range(7)), list(range(8))]
)
def test_multi_hot_equals_get_dummies_of_pandas(codes):
    lists, rows = random_answers(900, codes, 1), np.random.default_rng(2).permutation(900)[:600]
    frame = lists.to_pandas().explode().dropna()
    dummies = pd.get_dummies(frame).groupby(level=0).max().reindex(range(900), fill_value=False)
    counts = dummies.iloc[np.sort(rows)].sum()
    kept = sorted(counts[counts >= 12].index)
    hot = MultiHot(min_count=12).fit(lists, rows)
    assert hot.codes == kept and hot.counts == counts[kept].tolist() and 0 < len(kept)
    found, missing = unpack_bits(hot(lists), len(kept)), lists.is_null().to_numpy()
    assert np.isnan(found[missing]).all() and missing.any()
    np.testing.assert_array_equal(found[~missing], dummies[kept].to_numpy()[~missing].astype(np.float32))
    assert hot(lists).shape == (900, len(kept) // 8 + 1) and hot(lists).dtype == np.uint8


def test_none_of_the_above_is_a_row_of_zeros_and_a_refusal_is_missing():
    answers = column("p6150_i0", [[1, 4], [-7], [-3], None, [4, -3]])
    hot = MultiHot(min_count=1).fit(answers.values, np.arange(5))
    expected = [[1, 1], [0, 0], [np.nan] * 2, [np.nan] * 2, [0, 1]]
    np.testing.assert_array_equal(unpack_bits(hot(answers.values), 2), expected)


def test_codes_of_other_rows_change_nothing_that_was_learned():
    lists = random_answers(200, list(range(9)), 3)
    changed = pl.Series("x", lists.to_list()[:120] + [[77, 78]] * 80, dtype=pl.List(pl.Int32))
    first, second = (MultiHot(3).fit(column, np.arange(120)) for column in (lists, changed))
    assert (first.codes, first.counts) == (second.codes, second.counts) and np.array_equal(
        second.rows, np.arange(120)
    )
    assert not unpack_bits(second(changed), len(second.codes))[120:].any()


def test_nobody_has_a_code_that_is_common_enough():
    lists = random_answers(20, list(range(9)), 4)
    hot = MultiHot(min_count=21).fit(lists, np.arange(20))
    assert hot.codes == [] and unpack_bits(hot(lists), 0).shape == (20, 0)
    with pytest.raises(TableError, match="training rows"):
        hot.fit(lists, np.array([], dtype=int))


def test_positions_of_a_single_choice_become_a_list_and_their_order_means_nothing():
    columns = [Cleaned(pl.Series(f"p40002_i0_a{i}", values, dtype=pl.String), pl.Series([0 if v else 1 for v in values], dtype=pl.UInt8))
               for i, values in enumerate(([None, "I10", "E11"], [None, None, "I10"], [None, "E11", None]))]  # fmt: skip
    one, other = as_list(columns), as_list(columns[::-1])
    assert one.values.to_list() == [None, ["I10", "E11"], ["E11", "I10"]] and one.kinds.to_list() == [1, 0, 0]
    hot = MultiHot(1).fit(one.values, np.arange(3))
    assert np.array_equal(hot(one.values), hot(other.values))


def test_rolling_up_counts_a_group_once_a_person():
    lists = pl.Series("x", [["E119", "E112"], ["E119", "I10"], [], None, ["I10"]])
    rolled = roll_up(lists, prefix=3)
    assert rolled.to_list() == [["E11"], ["E11", "I10"], [], None, ["I10"]]
    hot = MultiHot(2).fit(rolled, np.arange(5))
    assert (hot.codes, hot.counts) == (["E11", "I10"], [2, 2])
    numbers = pl.Series("x", [[1065, 1066], [9]], dtype=pl.List(pl.Int32))
    assert roll_up(numbers, groups={1065: 1, 1066: 1}).to_list() == [[1], [9]]


def test_what_was_fitted_is_described_without_small_counts():
    lists = pl.Series("x", [[1]] * 9 + [[1, 2]] * 3, dtype=pl.List(pl.Int32))
    table = describe_codes(MultiHot(1).fit(lists, np.arange(12)), {"1": "gout"})
    assert table.rows() == [("1", "gout", "12"), ("2", "", "<5")]


def test_the_mean_of_dates_is_the_day_in_the_middle_as_numpy_has_it():
    rng = np.random.default_rng(0)
    days = rng.integers(0, 20_000, (50, 3)).astype("datetime64[D]")
    columns = [
        Cleaned(pl.Series(f"p53_i{i}", days[:, i]), pl.Series([0] * 50, dtype=pl.UInt8)) for i in range(3)
    ]
    done = reduce_columns(columns, "mean").values
    assert done.dtype == pl.Date
    assert done.to_numpy().astype(np.int64).tolist() == np.floor(days.astype(np.int64).mean(1)).tolist()
    moments = [Cleaned(column.values.cast(pl.Datetime("us")), column.kinds) for column in columns]
    assert reduce_columns(moments, "mean").values.dtype == pl.Datetime("us")
    gap = [columns[0], Cleaned(columns[1].values.set(pl.Series([True] * 50), None), columns[1].kinds)]
    assert reduce_columns(gap, "mean").values.to_list() == columns[0].values.to_list()
    assert reduce_columns(columns, "max").values.to_numpy().tolist() == days.max(1).tolist()


HEART = pl.Series("p6150_i0", [[1, 4], [2], None], dtype=pl.List(pl.Int32))
NUMBER = Cleaned(pl.Series("p50_i0", [1.0, 2.0, None]), pl.Series([0, 0, 1], dtype=pl.UInt8))
CODE = Cleaned(pl.Series("p31", [0, 1, None], dtype=pl.Int32), NUMBER.kinds)
DAY = Cleaned(pl.Series("p53_i0", ["2008-05-01"] * 3).str.to_date(), NUMBER.kinds)
SHORT = Cleaned(NUMBER.values[:2], NUMBER.kinds[:2])
MISTAKES = {
    "no columns": (lambda: reduce_columns([], "mean"), "expected at least one column, found none"),
    "two types": (lambda: reduce_columns([DAY, NUMBER], "max"), "expected columns of one type, found Date and a number"),
    "two types, the first": (lambda: reduce_columns([DAY, NUMBER], "first"), "expected columns of one type"),
    "two lengths": (lambda: reduce_columns([NUMBER, SHORT], "max"), "expected columns of the same participants"),
    "a code after a number": (lambda: reduce_columns([NUMBER, CODE], "mean"), "of codes, lists and texts, first or last"),
    "no choices": (lambda: as_list([]), "expected at least one column, found none"),
    "lists as choices": (lambda: as_list([Cleaned(HEART, NUMBER.kinds)]), "expected single choices, found lists of codes"),
    "a prefix of numbers": (lambda: roll_up(HEART, prefix=1), "expected codes that are text, found codes of type Int32"),
    "groups of text": (lambda: roll_up(HEART, groups={"a": "b"}), "the groups of p6150_i0: expected codes and groups of the type"),
    "no lists": (lambda: roll_up(CODE.values, groups={1: 2}), "the multiple choice p31: expected lists of codes"),
    "bits of no lists": (lambda: MultiHot().fit(CODE.values, np.arange(3)), "the multiple choice p31: expected lists of codes"),
    "rows beyond the end": (lambda: MultiHot().fit(HEART, np.array([0, 3])), "expected training rows from 0 to 2, found others"),
    "rows before the start": (lambda: MultiHot().fit(HEART, np.array([-1])), "expected training rows from 0 to 2, found others"),
    "a mask": (lambda: MultiHot().fit(HEART, np.array([True, False, True])), "expected training rows from 0 to 2, found others"),
    "bits before the fit": (lambda: MultiHot()(HEART), "expected a `MultiHot` that was fitted"),
    "no name of a column": (lambda: parent_columns("smoking", ["p31"]), "column smoking: expected a canonical name"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_what_does_not_go_together_is_an_error_that_says_so(case):
    act, message = MISTAKES[case]
    with pytest.raises(TableError, match=re.escape(message)):
        act()
