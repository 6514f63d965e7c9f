"Relatives and withdrawals, in rows of the Biobank."

import networkx as nx
import numpy as np
import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank.relatedness import (
    degree_of,
    of_one_application,
    read_relatedness,
    read_withdrawals,
    rows_of,
)
from ukbmm.core import EID_PATTERN, TableError

PEOPLE = np.array([1_000_001, 1_000_002, 1_000_005, 1_000_009])


def written(path, text):
    path.write_text(text)
    return path


def test_rows_are_found_as_a_dictionary_finds_them():
    rng = np.random.default_rng(0)
    people = np.sort(rng.choice(2000, 500, replace=False))
    asked = rng.integers(-5, 2005, 1000)
    by_hand = {eid: row for row, eid in enumerate(people.tolist())}
    assert rows_of(asked, people).tolist() == [by_hand.get(eid, -1) for eid in asked.tolist()]


def test_rows_of_nobody_and_among_nobody():
    assert rows_of(np.array([], dtype=int), PEOPLE).tolist() == []
    assert rows_of(PEOPLE, np.array([], dtype=np.int64)).tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("kinship", "degree"),
    [(0.5, "twin or duplicate"), (0.36, "twin or duplicate"), (0.35, "first degree"), (0.25, "first degree"),
     (0.178, "first degree"), (0.175, "second degree"), (0.125, "second degree"), (0.0885, "second degree"),
     (0.0883, "third degree"), (0.0625, "third degree"), (0.0443, "third degree"), (0.0441, "unrelated"), (-0.1, "unrelated")],
)  # fmt: skip
def test_degrees_have_the_limits_of_king(kinship, degree):
    assert degree_of(kinship) == degree


def identifiers(seed, n):
    "An application's identifiers: drawn at random from the numbers of seven digits."
    return np.random.default_rng(seed).choice(np.arange(1_000_000, 6_100_000), n, replace=False)


@pytest.mark.parametrize("seed", range(8))
def test_two_applications_never_fit_and_parts_of_one_do(seed):
    rng = np.random.default_rng(seed)
    cohort, other = identifiers(2 * seed, 50_000), identifiers(2 * seed + 1, 50_000)
    parts = {  # a table and another file of the same people, by share of the cohort; how many are in both by design
        "everybody": (1.0, 1.0), "genotypes": (0.02, 0.97), "relatives": (0.02, 0.3), "deaths": (0.02, 0.08),
        "few who died": (0.1, 0.02), "small": (0.002, 0.9),
    }  # fmt: skip
    for table, share in parts.values():
        of_table = rng.choice(cohort, int(table * len(cohort)), replace=False)
        for people, fits in ((cohort, True), (other, False)):
            file = rng.choice(people, int(share * len(people)), replace=False)
            n_shared = len(np.intersect1d(of_table, file))
            assert of_one_application(n_shared, len(of_table), len(file)) == fits
            assert of_one_application(n_shared, len(file), len(of_table)) == fits


def test_small_applications_fit_by_chance_less_than_once_in_a_hundred_times():
    fits = 0
    for seed in range(300):
        one, other = identifiers(1000 + seed, 1500), identifiers(5000 + seed, 1500)
        fits += of_one_application(len(np.intersect1d(one, other)), 1500, 1500)
    assert fits <= 3


def test_of_fewer_than_twenty_people_nothing_is_told():
    assert of_one_application(0, 19, 500_000) and of_one_application(0, 500_000, 19)
    assert not of_one_application(0, 20, 500_000)


def pairs_of(people, path):
    "A relatedness file in which every person has one relative."
    lines = [f"{a} {b} 0.05 0.01 0.25\n" for a, b in np.asarray(people).reshape(-1, 2)]
    return written(path, "ID1 ID2 HetHet IBS0 Kinship\n" + "".join(lines))


def test_pairs_of_another_application_are_refused_and_those_of_a_larger_cohort_are_not(tmp_path):
    cohort, other = identifiers(1, 20_000), identifiers(2, 20_000)
    by_chance = len(np.intersect1d(cohort, other))
    assert by_chance > 50  # 80 are expected
    path = pairs_of(other, tmp_path / "rel.dat")
    with pytest.raises(
        TableError, match="rel.dat: expected relatives among the participants.*<1% of them"
    ) as caught:
        read_relatedness(path, np.sort(cohort))
    assert not EID_PATTERN.search(str(caught.value))
    part = np.sort(
        np.random.default_rng(3).choice(cohort, 400, replace=False)
    )  # a fiftieth, and 30% have relatives
    pairs, outside = read_relatedness(pairs_of(cohort[:6000], tmp_path / "all.dat"), part)
    assert pairs.height < 20 and outside > 2900
    few = pairs_of(other[:10], tmp_path / "few.dat")
    assert read_relatedness(few, part)[0].height == 0


def test_pairs_are_sorted_rows_without_strangers_and_repetitions(tmp_path):
    path = written(
        tmp_path / "rel.dat",
        "ID1 ID2 HetHet IBS0 Kinship\n"
        "1000009 1000001 0.05 0.01 0.25\n"
        "1000002 1000005 0.05 0.01 0.06\n"
        "1000001 1000009 0.05 0.01 0.25\n"  # the first one again, the other way round
        "1000001 1999999 0.05 0.01 0.1\n"  # a stranger
        "-1 -2 0 0 0.1\n"  # two who withdrew
        "1000005 1000005 0 0 0.5\n",  # nobody is a relative of himself
    )
    pairs, outside = read_relatedness(path, PEOPLE)
    assert pairs.rows() == [(0, 3, 0.25), (1, 2, 0.06)]
    assert outside == 3


def test_columns_may_stand_in_any_order_and_be_separated_by_any_space(tmp_path):
    path = written(tmp_path / "rel.dat", "  Kinship\tID2   ID1\n0.25 \t 1000002  1000001 \n")
    assert read_relatedness(path, PEOPLE).pairs.rows() == [(0, 1, 0.25)]


def test_a_file_of_no_pairs_gives_none(tmp_path):
    pairs, outside = read_relatedness(written(tmp_path / "rel.dat", "ID1 ID2 HetHet IBS0 Kinship\n"), PEOPLE)
    assert pairs.height == 0 and outside == 0
    assert pairs.schema == {"row_a": pl.Int64, "row_b": pl.Int64, "kinship": pl.Float64}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID1 ID2 HetHet\n1 2 0\n", "rel.dat: expected a header with ID1, ID2, Kinship"),
        ("1000001 1000002 0 0 0.25\n", "rel.dat: expected a header"),
        ("ID1 ID2 Kinship\n1000001 1000002 0.2\n1000001 1000002\n", "rel.dat, line 3: expected 3 values"),
        (
            "ID1 ID2 Kinship\n1000001 1000002 0.2\nx 1000002 0.1\n",
            "rel.dat, line 3: expected two identifiers",
        ),
        ("ID1 ID2 Kinship\n1000001 1000002 NA\n", "rel.dat, line 2"),
        ("ID1 ID2 Kinship\n1000001 1000002 -inf\n", "rel.dat, line 2"),
        ("", "rel.dat: .*an empty file"),
    ],
)
def test_other_files_are_refused_by_line_without_their_identifiers(tmp_path, text, message):
    with pytest.raises(TableError, match=message) as caught:
        read_relatedness(written(tmp_path / "rel.dat", text), PEOPLE)
    assert "100000" not in str(caught.value)


def test_files_that_are_absent_are_named(tmp_path):
    with pytest.raises(TableError, match="rel.dat"):
        read_relatedness(tmp_path / "rel.dat", PEOPLE)
    with pytest.raises(TableError, match="w1.csv"):
        read_withdrawals([tmp_path / "w1.csv"])


def test_an_infinite_or_undefined_kinship_is_refused(tmp_path):
    text = "ID1 ID2 Kinship\n1000001 1000002 nan\n"
    with pytest.raises(TableError, match="line 2"):
        read_relatedness(written(tmp_path / "rel.dat", text), PEOPLE)


def test_the_mice_have_the_families_of_their_pedigree():
    folder = shared_data("hs_mice")
    table = pl.read_csv(folder / "phenotypes.csv", columns=["eid"], infer_schema=False)
    people = np.sort(table["eid"].cast(pl.Int64).to_numpy())
    pairs, outside = read_relatedness(folder / "relatedness.dat", people)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(people)))
    graph.add_edges_from(pairs.filter(pl.col("kinship") > 0.0442).select("row_a", "row_b").iter_rows())
    families = list(nx.connected_components(graph))
    assert (len(people), outside) == (1814, 0)
    assert len(families) == 169 and max(map(len, families)) == 48  # REFERENCE.md


def test_withdrawals_are_the_union_of_all_lists(tmp_path):
    lists = [
        written(tmp_path / "w1.csv", "1000005\n1000001\n\n"),
        written(tmp_path / "w2.csv", '\ufeffeid\n"1000009"\r\n1000001\n-3\n'),
        written(tmp_path / "w3.csv", ""),
    ]
    assert read_withdrawals(lists).tolist() == [-3, 1000001, 1000005, 1000009]
    assert read_withdrawals([]).tolist() == []


@pytest.mark.parametrize(
    "text", ["1000001\nabc\n", "1000001,3\n1000002,4\n", "1000001 1000002\n", "1--2\n", "12.5\n"]
)
def test_a_list_of_something_else_is_refused_by_line(tmp_path, text):
    with pytest.raises(TableError, match=r"w1.csv, line \d: expected one identifier") as caught:
        read_withdrawals([written(tmp_path / "w1.csv", text)])
    assert "100000" not in str(caught.value)


@pytest.mark.parametrize("text", ["--5\n", "²\n", "-\n", "9" * 20])
def test_a_line_that_only_resembles_a_number_is_refused(tmp_path, text):
    with pytest.raises(TableError, match="w1.csv, line 1"):
        read_withdrawals([written(tmp_path / "w1.csv", text)])


def test_a_list_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "w1.csv").write_bytes(b"\xff\xfe1\x000\x00")
    with pytest.raises(TableError, match="w1.csv: expected UTF-8 text"):
        read_withdrawals([tmp_path / "w1.csv"])


def test_one_list_may_be_named_by_itself(tmp_path):
    path = written(tmp_path / "w1.csv", "1000005\n1000001\n")
    assert read_withdrawals(path).tolist() == read_withdrawals(str(path)).tolist() == [1000001, 1000005]
