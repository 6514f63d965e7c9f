"Trees are the showcase's own, and the classifications' codes find the place that the showcase gives them."

import numpy as np
import polars as pl
import pytest
from shared_data import shared_data
from test_showcase import funpack_file

from ukbmm.biobank.dictionary import NODES, Dictionary, load_dictionary, save_dictionary
from ukbmm.biobank.hierarchies import CLASSIFICATIONS, LEVELS, Tree
from ukbmm.core import DictionaryError

D = Dictionary.builtin()
OWN = sorted(set(D.nodes["coding"]) - set(CLASSIFICATIONS))


def shipped_rows(coding):
    return D.nodes.filter(pl.col("coding") == coding)


def reference(tmp_path, coding):
    "The showcase's tree as FUNPACK has it, by node."
    path = funpack_file(tmp_path, f"hierarchy/coding{coding}.tsv")
    table = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    return {row["node_id"]: row for row in table.iter_rows(named=True)}


def above(rows, row):
    "Codes above a row, walked by hand."
    found = []
    while row["parent_id"] != "0":
        row = rows[row["parent_id"]]
        found.append(row["coding"])
    return found


@pytest.mark.parametrize("coding", OWN)
def test_our_own_trees_are_funpacks_node_by_node(tmp_path, coding):
    rows, tree = reference(tmp_path, coding), D.tree(coding)
    expected = {(int(n), int(r["parent_id"]), r["coding"], r["selectable"] == "Y") for n, r in rows.items()}
    assert {(n.node, n.parent, n.code, n.selectable) for n in tree.nodes.values()} == expected
    for number, node in tree.nodes.items():
        codes = [tree.nodes[up.node].code for up in tree.ancestors(node.name)]
        assert codes == above(rows, rows[str(number)])
        assert node.level == len(codes)


@pytest.mark.parametrize("coding", CLASSIFICATIONS)
def test_every_code_of_a_classification_finds_the_place_that_the_showcase_gives_it(tmp_path, coding):
    rows, tree = reference(tmp_path, coding), D.tree(coding)
    some = [
        r for r in rows.values() if r["selectable"] == "Y" and " " not in r["coding"] and len(r["coding"]) > 1
    ]
    assert len(some) > 1_800
    codes = pl.Series([r["coding"] for r in some])
    heads = {level: tree.rollup(codes, level).to_list() for level in LEVELS[coding]}
    for i, row in enumerate(some):
        ways = [row["coding"], *above(rows, row)]
        chapter = next(code for code in ways if code.startswith("Chapter"))
        assert tree[heads["chapter"][i]].code == chapter, row["coding"]
        block = next((code for code in ways if code.startswith("Block")), None)
        assert block is None or heads["block"][i] == block, row["coding"]
        width = 4 if coding == 87 and row["coding"].startswith("E") else 3
        assert heads["category"][i] == row["coding"][:width], row["coding"]


def test_nodes_and_codes_are_those_of_the_showcase_as_tofu_has_it():
    table = pl.read_csv(shared_data("ukb_metadata/tofu_encodings.csv.gz"), infer_schema=False)
    for coding in (3, 5, 6, 39):
        theirs = table.filter(pl.col("encoding_id") == str(coding)).select("code_id", "value").rows()
        ours = {(str(node.node), node.code) for node in D.tree(coding).nodes.values()}
        assert len(set(theirs) & ours) > 0.98 * len(ours)


# by hand, from the showcase's pages and the printed classification
ANCESTORS = [
    (19, "I219", ["I21", "Block I20-I25", "Chapter IX"]),
    (19, "i21.9", ["I21", "Block I20-I25", "Chapter IX"]),
    (19, "I21", ["Block I20-I25", "Chapter IX"]),
    (19, "E119", ["E11", "Block E10-E14", "Chapter IV"]),
    (19, "M8000", ["M800", "M80", "Block M80-M85", "Chapter XIII"]),
    (19, "D48", ["Block D37-D48", "Chapter II"]),
    (19, "D50", ["Block D50-D53", "Chapter III"]),
    (19, "U071", ["U07", "Block U00-U49", "Chapter XXII"]),
    (19, "Z999", ["Z99", "Block Z80-Z99", "Chapter XXI"]),
    (19, "H600", ["H60", "Block H60-H62", "Chapter VIII"]),
    (19, "I20-I25", ["Chapter IX"]),
    (87, "4109", ["410", "Block 410-414", "Chapter VII"]),
    (87, "E8500", ["E850", "Block E850-E858", "Chapter E"]),
    (87, "V270", ["V27", "Block V20-V29", "V01-V91"]),  # two chapters of ICD-9 are called V
    (87, "2900", ["290", "Block 290-299", "290-319"]),
    (240, "K453", ["K45", "Chapter K"]),
    (240, "K45.3", ["K45", "Chapter K"]),
    (259, "3041", ["304", "Chapter VI"]),
    (6, 1075, ["heart/cardiac problem", "cardiovascular"]),
    (6, 1065, ["hypertension", "cardiovascular"]),
    (1001, "1001", ["1"]),
    (39, 5, ["-1"]),
]


@pytest.mark.parametrize(("coding", "code", "expected"), [row for row in ANCESTORS if row[1] != 1065])
def test_ancestors_worked_by_hand(coding, code, expected):
    tree = D.tree(coding)
    found = tree.ancestors(code)
    names = [node.label if coding == 6 else node.name for node in found]
    assert names == expected
    assert (
        tree[code].level == len(expected)
        and [node.level for node in found] == list(range(len(expected)))[::-1]
    )
    assert tree.parent(code) == found[0]
    assert tree.path(code).startswith(str(found[-1]))


def test_the_two_codes_of_myasthenia_gravis_are_two_nodes():
    tree = D.tree(6)
    one, other = tree[1260], tree[1437]
    assert one.label == other.label == "myasthenia gravis" and one.node != other.node
    assert (one.name, other.name) == ("1260", "1437")
    assert tree.path(1260) != tree.path(1437)
    rolled = tree.rollup(pl.Series([1260, 1437]), 0).to_list()
    assert rolled == [tree.ancestors(1260)[-1].name, tree.ancestors(1437)[-1].name]


def test_names_are_unique_and_lead_back_to_their_node():
    for coding in D.nodes["coding"].unique():
        tree = D.tree(coding)
        names = [node.name for node in tree.nodes.values()]
        assert len(set(names)) == len(names)
        assert all(tree[node.name] is node for node in tree.nodes.values())


@pytest.mark.parametrize("coding", OWN)
def test_up_and_down_are_the_same_ways(coding):
    tree = D.tree(coding)
    everything = tree.descendants()
    assert sorted(n.node for n in everything) == sorted(tree.nodes)
    pairs = {(up.node, n.node) for n in everything for up in tree.ancestors(n.name)}
    assert pairs == {(n.node, low.node) for n in everything for low in tree.descendants(n.name)}
    assert {n.node for n in tree.leaves()} == set(tree.nodes) - {n.parent for n in everything}
    order = [n.node for n in everything]
    assert all(n.parent == 0 or order.index(n.parent) < order.index(n.node) for n in everything[:100])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_rollup_is_the_ancestor_at_the_level_or_the_code_itself(level):
    tree = D.tree(6)
    codes = [n.code for n in tree.nodes.values() if n.selectable]
    expected = [
        next((n.name for n in [tree[code], *tree.ancestors(code)] if n.level <= level), None)
        for code in codes
    ]
    assert tree.rollup(pl.Series([int(code) for code in codes]), level).to_list() == expected
    assert tree.rollup(pl.Series(codes), level).to_list() == expected


def test_columns_keep_length_order_and_gaps():
    tree, rng = D.tree(19), np.random.default_rng(1)
    known = ["I219", "I210", "E119", "D50", "nonsense", None]
    cells = [None if n == 9 else [known[i] for i in rng.integers(0, 6, n)] for n in rng.integers(0, 10, 500)]
    column = pl.Series("p41270", cells, dtype=pl.List(pl.String))
    block = {
        "I219": "Block I20-I25",
        "I210": "Block I20-I25",
        "E119": "Block E10-E14",
        "D50": "Block D50-D53",
    }
    rolled = tree.rollup(column, "block")
    assert rolled.name == "p41270" and rolled.dtype.inner == pl.Enum(sorted(set(block.values())))
    assert rolled.to_list() == [
        None if cell is None else [block.get(code) for code in cell] for cell in cells
    ]
    found = tree.below(column, "I20-I25", "D50-D53")
    wanted = {"I219", "I210", "D50"}
    assert found.to_list() == [
        None if cell is None else any(code in wanted for code in cell) for cell in cells
    ]


@pytest.mark.parametrize(
    "column",
    [pl.Series("x", [], dtype=pl.String), pl.Series("x", [None, None], dtype=pl.String), pl.Series("x", [[], None], dtype=pl.List(pl.String))],
)  # fmt: skip
def test_columns_without_a_code_stay_without(column):
    rolled, found = D.tree(19).rollup(column, "chapter"), D.tree(19).below(column, "I21")
    assert rolled.to_list() == column.to_list()
    assert found.to_list() == [None if cell is None else False for cell in column.to_list()]


def test_a_group_of_codes_in_a_column_of_numbers():
    tree = D.tree(6)
    column = pl.Series([[1075, 1111], [1111], [], None], dtype=pl.List(pl.Int32))
    assert tree.below(column, "cardiovascular").to_list() == [True, False, False, None]
    assert tree.below(column, 1075).to_list() == [True, False, False, None]
    assert 1075 in [
        int(code) for code in tree.codes_below("cardiovascular")
    ] and "-1" not in tree.codes_below("cardiovascular")


def test_looking_up_does_not_change_a_tree():
    tree = D.tree(19)
    tree.rollup(pl.Series(["I219", "J45"]), "block")
    tree.below(pl.Series(["I219"]), "I21")
    assert "I21.9" in tree and tree.ancestors("I219") and len(tree) == 286
    assert tree.descendants("I20-I25") == []
    grown = tree.with_codes(["I219", "I219", "I21.4"])
    assert [node.code for node in grown.descendants("I20-I25")] == ["I21", "I214", "I219"]
    assert grown.codes_below("I20-I25") == ["I21", "I214", "I219"] and grown.with_codes(["I21"]) is grown


def test_the_order_of_codes_does_not_matter():
    codes = ["I219", "E119", "M8000", "D50", "A90"]
    one, other = (D.tree(19).with_codes(order) for order in (codes, codes[::-1]))
    assert one.table.equals(other.table)


@pytest.mark.parametrize(
    "code", ["", "I", "I2", "12", "heart", "I-21", "219", "??", "Chapter XXX", "-1", None]
)
def test_what_is_no_code_of_icd_10_is_not_found(code):
    tree = D.tree(19)
    assert code not in tree
    with pytest.raises(DictionaryError, match="a code of coding 19"):
        tree.ancestors(code)


def test_errors_say_what_would_do():
    with pytest.raises(DictionaryError, match="coding 9: expected a coding that is a tree: 3, 5, 6, 19"):
        D.tree(9)
    with pytest.raises(
        DictionaryError, match="level 'block' of coding 240: expected a number from 0, chapter, category"
    ):
        D.tree(240).rollup(pl.Series(["K453"]), "block")
    with pytest.raises(DictionaryError, match="level -1"):
        D.tree(6).rollup(pl.Series([1075]), -1)
    with pytest.raises(DictionaryError, match="code -1"):  # 28 headings share it
        D.tree(6)["-1"]
    with pytest.raises(DictionaryError, match="cardiovascular"):
        D.tree(6)["cardiovasculr"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 1, 0, "a"), (1, 1, 0, "b")], "a node that stands twice"),
        ([(1, 1, 9, "a")], "no node 9, the parent of 1"),
        ([(1, 1, 2, "a"), (1, 2, 1, "b")], "above itself"),
    ],
)
def test_what_is_no_tree_is_refused(rows, message):
    table = pl.DataFrame([(*row, None, True) for row in rows], schema=NODES, orient="row")
    with pytest.raises(DictionaryError, match=message):
        Tree(1, table)


TITLES = """\
coding	meaning	node_id	parent_id	selectable
Chapter IX	Chapter IX Diseases of some kind	90	0	N
Block I20-I25	I20-I25 Heart <diseases>	1160	90	N
I21	I21 Attack	40750	1160	Y
I219	I21.9 Attack, unspecified	40810	40750	Y
"""


def test_a_users_file_makes_the_tree_whole_and_is_kept(tmp_path):
    (tmp_path / "coding19.tsv").write_text(TITLES)
    update = D.update(tmp_path / "coding19.tsv")
    assert update.codings == {"added": 1, "changed": 0, "unchanged": 0}
    save_dictionary(update.dictionary, tmp_path / "my.dictionary")
    tree = load_dictionary(tmp_path / "my.dictionary").tree(19)
    assert [node.code for node in tree.descendants("I20-I25")] == ["I21", "I219"]
    assert tree.path("I21.9") == "Chapter IX Diseases of some kind > Block I20-I25 Heart <diseases> > I21 Attack > I219 Attack, unspecified"  # fmt: skip
    assert [n.code for n in tree.ancestors("I2199")] == ["I219", "I21", "Block I20-I25", "Chapter IX"]
    assert [n.code for n in tree.ancestors("I228")] == ["I22", "Block I20-I25", "Chapter IX"]
    assert "J45" not in tree  # its chapter is not in the file
    assert tree.rollup(pl.Series(["I2199", "I228", "J45"]), "category").to_list() == ["I21", "I22", None]
    assert D.tree(6).nodes == load_dictionary(tmp_path / "my.dictionary").tree(6).nodes


def test_the_whole_file_of_icd_10_gives_the_same_places_as_the_codes_alone(tmp_path):
    whole = D.update(funpack_file(tmp_path, "hierarchy/coding19.tsv")).dictionary.tree(19)
    assert len(whole) == 19_190 and len(whole.codes_below("I20-I25")) > 30
    codes = pl.Series([node.code for node in whole.nodes.values() if node.selectable])
    for level in ("chapter", "block"):
        assert whole.rollup(codes, level).to_list() == D.tree(19).rollup(codes, level).to_list()


def test_pictures_are_escaped_and_say_what_is_left_out(tmp_path):
    (tmp_path / "coding19.tsv").write_text(TITLES)
    tree = D.update(tmp_path / "coding19.tsv").dictionary.tree(19)
    shown = tree.show("I20-I25", depth=2)
    assert str(shown).split("\n")[-1] == "      I219 Attack, unspecified"
    assert "&lt;diseases&gt;" in shown._repr_html_() and "<diseases>" not in shown._repr_html_()
    assert str(D.tree(6).show(most=3)).endswith("more") and " below)" in str(D.tree(6).show())
    assert repr(D.tree(1001)) in D.tree(1001)._repr_html_()


def test_no_title_of_icd_or_opcs_ships():
    table = D.nodes.filter(pl.col("coding").is_in(list(CLASSIFICATIONS)))
    assert table["label"].str.contains(r"^[A-Z]?\d{2,3}-[A-Z]?\d{2,3}$").all()
    assert table["code"].str.contains(r"^(Chapter [A-Z]+|Block [A-Z]?\d+-[A-Z]?\d+)$").all()
    assert not set(CLASSIFICATIONS) & set(D.labels)


@pytest.mark.parametrize(
    ("coding", "code", "label", "shown"),
    [(19, "Block I20-I25", "I20-I25", "Block I20-I25"), (19, "Block I20-I25", "I20-I25 Ischaemic heart diseases", "Block I20-I25 Ischaemic heart diseases"),
     (19, "Chapter IX", "I00-I99", "Chapter IX I00-I99"), (19, "Chapter IX", "Chapter IX Diseases", "Chapter IX Diseases"),
     (19, "I21", "I21 Acute myocardial infarction", "I21 Acute myocardial infarction"), (19, "I210", "I21.0 Acute", "I210 Acute"), (19, "I21", None, "I21"),
     (240, "Chapter K", "Chapter K - Heart", "Chapter K Heart"), (6, "1075", "heart attack", "1075 heart attack"), (6, "11", "11-beta", "11 11-beta")],
)  # fmt: skip
def test_a_node_says_its_code_once(coding, code, label, shown):
    table = pl.DataFrame([(coding, 1, 0, code, label, True)], schema=NODES, orient="row")
    assert [str(node) for node in Tree(coding, table).nodes.values()] == [shown]
