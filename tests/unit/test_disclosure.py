"What is published tells about no single person: a reader who knows the totals tries to find out."

import itertools
import json
import logging
import re

import pytest

from ukbmm.biobank.description import describe
from ukbmm.biobank.store import ingest
from ukbmm.disclosure import (
    DisclosureError,
    Step,
    assert_publishable,
    is_small,
    merge_small_steps,
    scan_file,
    scan_text,
    show_count,
    show_flow,
    show_parts,
    show_share,
)

EID = "1234567"  # invented; of the shape of a participant's identifier


def interval(text):
    "The counts that a published text stands for."
    text = text.replace(",", "")
    if text.startswith("<"):
        return range(1, int(text[1:]))
    low, _, high = text.partition("-")
    return range(int(low), int(high or low) + 1)


def could_be(texts, total):
    "For each part, every count that a reader who knows the total can not rule out."
    reachable = [{0}]
    for text in texts:
        reachable.append({have + more for have in reachable[-1] for more in interval(text)})
    open_ = {total} & reachable[-1]
    found = []
    for text, before in zip(reversed(texts), reversed(reachable[:-1]), strict=True):
        found.append({n for n in interval(text) if any(rest - n in before for rest in open_)})
        open_ = {rest - n for rest in open_ for n in interval(text) if rest - n in before}
    return found[::-1]


def test_the_reader_of_these_tests_can_subtract():
    assert could_be(["1811", "<5"], 1814) == [{1811}, {3}]
    assert could_be(["5-9", "<5", "9"], 20) == [{7, 8, 9}, {2, 3, 4}, {9}]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1, "<5"), (2, "<5"), (3, "<5"), (4, "<5"), (5, "5"), (999, "999"), (1814, "1,814")],
)
def test_counts_of_one_to_four_are_not_shown(count, text):
    assert show_count(count) == text
    assert is_small(count) == (text == "<5")


SMALL_TABLES = [
    parts
    for n in (2, 3, 4)
    for parts in itertools.product([0, 1, 2, 3, 4, 5, 7, 9, 10, 13, 20], repeat=n)
    if sum(parts) >= 10
]


def test_parts_that_are_shown_are_true():
    for parts in SMALL_TABLES:
        shown = show_parts(parts)
        assert all(count in interval(text) for count, text in zip(parts, shown, strict=True)), parts


def test_no_small_part_is_written_out():
    for parts in SMALL_TABLES:
        assert all(
            text in ("<5", "<10") for n, text in zip(parts, show_parts(parts), strict=True) if 0 < n < 5
        )


def test_a_total_never_reveals_a_hidden_part():
    revealed = [
        (parts, show_parts(parts))
        for parts in [(1811, 3), (1810, 1), (1819, 4), *SMALL_TABLES]
        for n, open_ in zip(parts, could_be(show_parts(parts), sum(parts)), strict=True)
        if is_small(n) and len(open_) < 2
    ]
    assert not revealed, f"{len(revealed)} tables, such as {revealed[:8]}"


def test_nothing_is_hidden_without_need():
    assert show_parts([1774, 40, 0]) == ["1,774", "40", "0"]
    assert show_parts([8, 9]) == ["8", "9"]
    assert show_parts([]) == []


def test_the_part_that_is_hidden_with_a_small_one_is_the_smallest():
    shown = show_parts([3, 800, 90, 0])
    assert shown[1] == "800" and shown[3] == "0" and len(interval(shown[2])) >= 5


SHARES = [(n, total) for total in (5, 8, 20, 39, 100, 150, 401, 1000, 1814) for n in range(total + 1)]


def test_shares_are_true_to_half_a_percent():
    wrong = []
    for n, total in SHARES:
        text, percent = show_share(n, total), 100 * n / total
        number = int(re.sub(r"\D", "", text))
        true = (
            percent < number
            if text[0] == "<"
            else percent > number
            if text[0] == ">"
            else abs(percent - number) <= 0.5
        )
        wrong += [] if true else [(n, total, text)]
    assert not wrong, wrong[:5]


def test_a_share_never_reveals_a_small_count():
    for total in {total for _, total in SHARES}:
        texts = {}
        for n in range(total + 1):
            texts.setdefault(show_share(n, total), set()).add(n)
        for text, counts in texts.items():
            for small in (counts, {total - n for n in counts}):
                assert not any(is_small(n) for n in small) or len(small) >= 2, (text, total)


def test_shares_at_the_ends():
    assert [show_share(n, 1814) for n in (0, 907, 1814)] == ["0%", "50%", "100%"]
    assert show_share(0, 0) == "-"


FLOWS = [
    [Step(str(i), n) for i, n in enumerate(numbers)]
    for length in (1, 2, 3, 4)
    for numbers in itertools.product([0, 1, 3, 4, 5, 12], repeat=length)
]


def test_joined_steps_keep_the_sum_and_every_reason():
    for steps in FLOWS:
        merged = merge_small_steps(steps)
        assert sum(step.excluded for step in merged) == sum(step.excluded for step in steps)
        reasons = [reason for step in merged for reason in step.reason.split("; ")]
        assert sorted(reasons) == sorted(step.reason for step in steps)


def test_no_step_of_one_to_four_is_left_unless_all_together_are_as_few():
    for steps in FLOWS:
        total, merged = sum(step.excluded for step in steps), merge_small_steps(steps)
        left = [step for step in merged if is_small(step.excluded)]
        assert len(left) == (1 if is_small(total) else 0)


def flow_reveals(start, steps):
    "Whether a reader of a published flow can compute a number of 1 to 4."
    lines = show_flow(start, steps)
    before = {start}
    for _, excluded, remaining in lines[1:]:
        after = {n for n in interval(remaining) if any(b - n in interval(excluded) for b in before)}
        gone = {b - n for b in before for n in after if b - n in interval(excluded)}
        if any(len(found) < 2 and is_small(min(found)) for found in (gone, after)):
            return lines
        before = after
    return None


@pytest.mark.parametrize("start", [1810, 1811, 1814, 1819, 500])
def test_a_flow_reveals_no_excluded_few(start):
    revealed = [lines for lines in (flow_reveals(start, steps) for steps in FLOWS) if lines]
    assert not revealed, revealed[0]


def test_a_flow_reveals_no_remaining_few():
    assert flow_reveals(100, [Step("no outcome", 97)]) is None


def test_the_numbers_of_a_flow_add_up():
    lines = show_flow(1814, [Step("withdrawn", 2), Step("no genotype", 120), Step("no outcome", 30)])
    assert lines == [
        ("in the Biobank", "", "1,814"),
        ("withdrawn; no genotype", "122", "1,692"),
        ("no outcome", "30", "1,662"),
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_description_of_a_biobank_shows_no_count_of_one_to_four(n, tmp_path):
    values = ["2"] * 50 + ["-1"] * n + ["-3"] * 30 + [""] * 20
    rows = "".join(f"{3_000_001 + i},{value}\n" for i, value in enumerate(values))
    (tmp_path / "t.csv").write_text("eid,1070-0.0\n" + rows)
    table = describe(ingest(tmp_path / "t.csv", tmp_path / "b.biobank")).row(0, named=True)
    assert table["do_not_know"] == "<5"
    assert len(interval(table["empty"])) >= 5  # the smallest other part is hidden with it
    assert table["prefer_not_to_answer"] == "30"
    assert str(n) not in {table["present"], table["do_not_know"]}


@pytest.mark.parametrize(
    "text",
    [
        f"eid {EID}", f"0  {EID}  27.1", f"{EID}\t1", f"| {EID} | 3 |", f"'{EID}'", f"<td>{EID}</td>",
        f"{EID}.nii.gz", "6999999",
        f"{EID},27.1,0",
        f"[{EID}, 2345678]\n[{EID}, 3]",
        f"{EID}.0   27.1",
    ],
)  # fmt: skip
def test_the_scanner_finds_identifiers_on_every_line(text):
    assert [found.place for found in scan_text(text, "x")] == [
        f"x, line {number}" for number in range(1, text.count("\n") + 2)
    ]


@pytest.mark.parametrize(
    "text",
    ["n = 1,234,567", "0.1234567", "7234567", "0234567", "12345678", "sha 1234567890abcdef1234567890abcdef",
     '<img src="data:image/png;base64,AAAA 1234567="/>'.replace(" ", "/"), "<svg>\n<path d='1234567'/>\n</svg>"],
)  # fmt: skip
def test_the_scanner_leaves_other_numbers_and_pictures_alone(text):
    assert scan_text(text) == []


def test_lines_are_counted_through_pictures():
    assert [f.place for f in scan_text(f"<svg>\n1\n</svg>\n{EID}")] == ["text, line 4"]


def test_findings_and_errors_do_not_repeat_the_identifier():
    with pytest.raises(DisclosureError) as caught:
        assert_publishable(f"fine\n{EID}\n{EID}", "report")
    assert "report, line 2" in str(caught.value) and "2 such lines" in str(caught.value)
    assert EID not in str(caught.value) + repr(caught.value) + repr(scan_text(EID))


def test_text_without_identifiers_passes_unchanged():
    text = "r = 0.52 in 1,814 participants"
    assert assert_publishable(text, "report") is text


def notebook(**output):
    cells = [
        {"cell_type": "markdown", "source": ["x"]},
        {"cell_type": "code", "source": [EID], "outputs": [output]},
    ]
    return json.dumps({"cells": cells})


@pytest.mark.parametrize(
    "output",
    [
        {"output_type": "stream", "text": [f"{EID}\n"]},
        {"output_type": "execute_result", "data": {"text/plain": [f"a {EID}"]}},
        {"output_type": "display_data", "data": {"text/html": f"<td>{EID}</td>"}},
        {"output_type": "error", "traceback": [f"KeyError: {EID}"]},
    ],
)
def test_every_kind_of_notebook_output_is_scanned_and_its_cell_named(tmp_path, output):
    (tmp_path / "a.ipynb").write_text(notebook(**output))
    assert [found.place for found in scan_file(tmp_path / "a.ipynb")] == ["a.ipynb, cell 2, line 1"]


def test_pictures_and_sources_of_a_notebook_are_not_outputs(tmp_path):
    (tmp_path / "a.ipynb").write_text(notebook(output_type="display_data", data={"image/png": EID}))
    assert scan_file(tmp_path / "a.ipynb") == []


def test_a_text_file_of_any_encoding_is_scanned(tmp_path):
    (tmp_path / "a.log").write_bytes(b"caf\xe9\n" + EID.encode())
    assert [found.place for found in scan_file(tmp_path / "a.log")] == ["a.log, line 2"]


def every_text(biobank):
    "What the package says about a Biobank."
    columns = biobank.columns
    yield from (repr(biobank), str(biobank), repr(biobank.genotypes()), repr(biobank.dictionary))
    yield from biobank.report()
    yield str(describe(biobank))
    yield str(biobank.relatives)
    yield str(biobank.verify())
    yield json.dumps(biobank.manifest)
    for attempt in (
        lambda: biobank.read(["p99"]),
        lambda: biobank.column(99),
        lambda: biobank.column(4080),
        lambda: biobank.genotypes("imputed"),
        lambda: biobank.read(columns, [10**9]),
    ):
        with pytest.raises(Exception) as caught:
            attempt()
        yield repr(caught.value)


def test_nothing_that_is_said_about_a_biobank_holds_an_identifier(biobank):
    import polars as pl

    eids = {str(eid) for eid in pl.read_parquet(biobank.path / "participants.parquet")["eid"]}
    assert len(eids) == 400
    shown = "\n".join(every_text(biobank))
    assert len(shown) > 1000
    assert not eids & set(re.findall(r"\d{7}", re.sub(r"[0-9a-f]{64}", "", shown)))


def test_ingest_logs_and_refusals_hold_no_identifier(tmp_path, capfd):
    rows = {n: f"{EID},{n},27.1\n" for n in (0, 1)}
    bad = {
        "twice": rows[0] + rows[1],
        "ragged": f"{EID}\n",
        "text": f"{EID},x {EID},27.1\n",
        "negative": f"-{EID},1,27\n",
        "gap": f",{EID},2\n",
        "quote": f'"{EID},1,27.1\n',
        "huge": f"{EID},9{EID}{EID},27.1\n",
        "no eid": None,
    }
    logging.getLogger("ukbmm").setLevel(logging.INFO)
    for name, body in bad.items():
        header = "eid,31-0.0,21001-0.0\n" if body else f"{EID},0,1\n"
        (tmp_path / "a.csv").write_text(header + (body or rows[0]))
        with pytest.raises(Exception) as caught:
            ingest(tmp_path / "a.csv", tmp_path / "out.biobank")
        assert EID not in repr(caught.value) + str(caught.value), name
        assert not (tmp_path / "out.biobank").exists()
    shown = capfd.readouterr()
    assert "a.csv" in shown.err and EID not in shown.err + shown.out


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("place", ["a name in the header", "a title of one's own"])
def test_an_identifier_in_a_description_is_refused_or_blanked_before_it_is_printed(
    tmp_path, capsys, place, options
):
    from ukbmm.cli import main

    named = place == "a name in the header"
    name, title = (EID, "Shoes") if named else ("shoe", f"Shoes {'x ' * 60}{EID}")
    (tmp_path / "t.csv").write_text(f"eid,31-0.0,900001-0.0,{name}\n1000001,1,42,x\n")
    (tmp_path / "f.tsv").write_text(f"FieldID\tField\tValueType\n900001\t{title}\tContinuous\n")
    ingest(tmp_path / "t.csv", tmp_path / "b", fields=tmp_path / "f.tsv")
    assert main(["describe", str(tmp_path / "b"), *options]) == (2 if named else 0)
    shown = capsys.readouterr()
    assert EID not in shown.err + shown.out
    assert (
        (shown.out == "" and "the description, line" in shown.err)
        if named
        else "[eid]" in shown.out or not options
    )
