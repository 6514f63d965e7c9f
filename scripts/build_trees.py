"""Build the trees of codings that ship with ukbmm from the public schema in the package fmrib-unpack.

    pip download --no-deps fmrib-unpack==4.0.1 -d wheels
    python scripts/build_trees.py wheels

Writes ukbmm/biobank/schema/trees.parquet: coding, node, parent, code, label, selectable. Of the trees of UK Biobank's own codings
it holds every node, with the labels that codings.parquet has not: those of headings. Of the classifications that are not
UK Biobank's own (ICD, OPCS) it holds chapters and blocks, as ranges of codes and without titles; which code lies in which is then a
matter of the code itself. fmrib-unpack is Apache-2.0, University of Oxford; see NOTICE.
"""

import io
import re
import sys
import zipfile
from pathlib import Path

import polars as pl

SCHEMA = Path(__file__).parent.parent / "ukbmm" / "biobank" / "schema"
CLASSIFICATIONS = {19: "ICD-10", 87: "ICD-9", 240: "OPCS-4", 259: "OPCS-3"}
ICD9, OPCS4 = 87, 240
NAMES = {"node_id": "node", "parent_id": "parent", "coding": "code", "meaning": "label"}


def hierarchies(wheels: Path) -> pl.DataFrame:
    "Every node of every tree in the package."
    wheel = zipfile.ZipFile(next(wheels.glob("fmrib_unpack-*.whl")))
    tables = []
    for name in sorted(wheel.namelist()):
        match = re.search(r"schema/hierarchy/coding(\d+)\.tsv$", name)
        if match:
            table = pl.read_csv(
                io.BytesIO(wheel.read(name)), separator="\t", quote_char=None, infer_schema=False
            )
            tables.append(table.rename(NAMES).with_columns(pl.lit(int(match[1]), pl.Int32).alias("coding")))
    whole = pl.concat(tables).cast({"node": pl.Int32, "parent": pl.Int32})
    return whole.with_columns(pl.col("selectable") == "Y", pl.col("label").str.strip_chars())


def ends(code: str, icd9: bool) -> tuple[str, str] | None:
    "The range that a block names, or the category of a code; None for other headings."
    block = re.fullmatch(r"Block (\w+)-(\w+)", code)
    if block:
        return block.groups()
    category = code[: 4 if icd9 and code.startswith("E") else 3]
    return None if " " in code or len(category) < 3 else (category, category)


def spans(tree: pl.DataFrame) -> dict[int, tuple[str, str]]:
    "First and last category at or below each node."
    parent, found, icd9 = dict(tree.select("node", "parent").iter_rows()), {}, tree["coding"][0] == ICD9
    for node, code in tree.select("node", "code").iter_rows():
        own = ends(code, icd9)
        while own and node:
            first, last = found.get(node, own)
            found[node] = min(first, own[0]), max(last, own[1])
            node = parent[node]
    return found


def headings(tree: pl.DataFrame) -> pl.DataFrame:
    "Chapters and blocks of a classification, with the range of their categories in place of a title."
    by_node = spans(tree)
    kept = tree.filter(pl.col("code").str.contains("^(Chapter|Block) "))
    ranges = [f"{by_node[node][0]}-{by_node[node][1]}" for node in kept["node"]]
    blocks = kept["code"].str.extract(r"^Block (\w+-\w+)$").to_list()
    ranges = [block or found for block, found in zip(blocks, ranges, strict=True)]
    if tree["coding"][0] == OPCS4:  # a chapter is a letter, whatever numbers it holds today
        ranges = [f"{letter}00-{letter}99" for letter in kept["code"].str.tail(1)]
    return kept.with_columns(pl.Series("label", ranges), pl.lit(False).alias("selectable"))


def main(wheels: Path) -> None:
    every, labels = hierarchies(wheels), pl.read_parquet(SCHEMA / "codings.parquet")
    own = every.filter(pl.col("coding").is_in(labels["coding"].unique().implode()))
    known = own.join(labels, left_on=["coding", "code"], right_on=["coding", "value"], how="semi")[
        "node", "coding"
    ]
    known = known.with_columns(pl.lit(True).alias("known"))
    own = own.join(known.unique(), on=["node", "coding"], how="left", maintain_order="left")
    own = own.with_columns(
        pl.when(~pl.col("selectable") | pl.col("known").is_null()).then("label").alias("label")
    )
    others = [headings(every.filter(pl.col("coding") == coding)) for coding in CLASSIFICATIONS]
    trees = pl.concat([own.drop("known"), *others])
    trees = trees.select("coding", "node", "parent", "code", "label", "selectable").sort("coding", "node")
    trees.write_parquet(SCHEMA / "trees.parquet", compression="zstd", compression_level=19)
    print(f"{trees['coding'].n_unique()} trees, {trees.height:,} nodes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
