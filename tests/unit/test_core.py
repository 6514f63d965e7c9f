"Layer 0: errors, names, seeds, logs, whole files."

import hashlib
import logging
import random

import numpy as np
import pytest

from ukbmm import core
from ukbmm.core import (
    Registry,
    UkbmmError,
    atomic_file,
    compiled,
    derive_seed,
    did_you_mean,
    duration,
    file_sha256,
    get_logger,
    nearest,
    progress,
    redact,
    require_extra,
    rng_for,
    seed_everything,
    write_text,
)

EID = "1234567"  # invented; of the shape of a participant's identifier


def test_an_error_says_thing_expectation_finding_and_remedy_in_that_order():
    error = UkbmmError("a.csv, line 3", "2 fields", "3", "Export it again.")
    assert str(error) == "a.csv, line 3: expected 2 fields, found 3. Export it again."
    assert str(UkbmmError("a.csv", remedy="Look.")) == "a.csv. Look."
    assert str(UkbmmError("a.csv", found="nothing")) == "a.csv: found nothing"
    assert (error.thing, error.expected, error.found, error.remedy) == (
        "a.csv, line 3", "2 fields", "3", "Export it again.",
    )  # fmt: skip


def test_every_error_type_is_an_error_of_the_package():
    names = [name for name in core.__all__ if name.endswith("Error")]
    assert len(names) == 12
    assert all(issubclass(getattr(core, name), UkbmmError) for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fusoin", "fusion"), ("FUSION_", None), ("zzz", None), ("gate", "gated"), ("", None)],
)
def test_nearest_finds_misspellings_and_nothing_else(name, expected):
    assert nearest(name, ["fusion", "gated", "concat"]) == expected


def test_did_you_mean_offers_one_name_or_lists_at_most_twelve():
    assert did_you_mean("gatde", ["gated", "concat"]) == "Did you mean 'gated'?"
    assert did_you_mean("qqq", ["b", "a"]) == "Known: a, b."
    many = [f"w{i:02}" for i in range(13)]
    assert did_you_mean("qqq", many) == f"Known: {', '.join(many[:12])}, ...."


def test_a_missing_optional_package_names_the_extra_that_installs_it():
    assert require_extra("json", "none").dumps([1]) == "[1]"
    with pytest.raises(core.MissingExtraError, match=r"pip install 'ukbmm\[imaging\]'"):
        require_extra("no_such_package_anywhere", "imaging")


def test_a_registry_returns_what_was_registered_and_refuses_a_second_owner():
    registry = Registry("fusion")

    @registry.register("concat")
    class Concat: ...

    assert registry["concat"] is Concat
    assert "concat" in registry and "gated" not in registry
    with pytest.raises(UkbmmError, match="fusion 'concat'.*already registered"):

        @registry.register("concat")
        class Other: ...

    assert registry["concat"] is Concat
    with pytest.raises(UkbmmError, match="Did you mean 'concat'"):
        registry["concta"]


def test_seeds_follow_their_written_definition():
    digest = hashlib.blake2b(b"7\x1forder\x1f3", digest_size=8).digest()
    assert derive_seed(7, "order", 3) == int.from_bytes(digest, "little") // 2


def test_seeds_differ_by_seed_and_address_and_stay_in_range():
    seeds = {derive_seed(seed, *a) for seed in range(20) for a in [(), ("a",), ("a", "b"), ("ab",), ("a", 1)]}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert abs(np.mean([derive_seed(0, i) for i in range(2000)]) / 2**63 - 0.5) < 0.03  # 0.0065 is one se


def test_generators_start_at_the_same_place_every_time():
    assert (rng_for(1, "x").random(5) == rng_for(1, "x").random(5)).all()
    assert (rng_for(1, "x").random(5) != rng_for(1, "y").random(5)).all()


def test_seed_everything_repeats_python_numpy_and_torch():
    torch = pytest.importorskip("torch")

    def draw(*address):
        seed_everything(3, *address)
        return random.random(), np.random.random(), torch.rand(1).item()

    first = draw("fold", 0)
    assert draw("fold", 0) == first
    assert all(a != b for a, b in zip(draw("fold", 1), first, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        f"{EID}",
        f"eid {EID}.",
        f"eid={EID}",
        f"({EID})",
        f"'{EID}'",
        f"{EID}:",
        f"/data/{EID}/scan.zip",
        f"{EID}_{EID}",
        f"[{EID}, {EID}]",
        f"{EID},27.1",
        f"27.1,{EID}",
        f"{EID}.0",
    ],
)
def test_identifiers_are_blanked_wherever_they_stand(text):
    assert EID not in redact(text)
    assert "[eid]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "1,234,567 people",
        "0.1234567",
        "12345678",
        "123456",
        "7234567",
        "a1234567b",
        "rs1234567",
        "1234567.25",
    ],
)
def test_other_numbers_are_left_alone(text):
    assert redact(text) == text


def test_logs_hold_no_identifier_in_message_or_arguments(capsys):
    get_logger("unit").warning(f"of {EID} and %s", f"({EID})")
    get_logger().info("row of %d", int(EID))
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "of [eid] and ([eid])\nrow of [eid]\n"


def test_logs_hold_no_identifier_in_a_traceback(capsys):
    try:
        raise ValueError(EID)
    except ValueError:
        get_logger("unit").exception("failed")
    assert EID not in capsys.readouterr().err


def test_loggers_are_below_the_package_s_own():
    assert get_logger("ukbmm.a").name == "ukbmm.a"
    assert get_logger("a").name == "ukbmm.a"
    handlers = list(logging.getLogger("ukbmm").handlers)
    get_logger("b")
    assert logging.getLogger("ukbmm").handlers == handlers  # asking again adds nothing


def test_a_file_that_was_interrupted_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old é")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        assert path.read_text(encoding="utf-8") == "old é"
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old é"
    assert list(path.parent.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_checksums_are_sha256_whatever_the_chunk(tmp_path, size):
    data = bytes(range(size))
    (tmp_path / "f").write_bytes(data)
    assert file_sha256(tmp_path / "f", chunk_bytes=8) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (3.21, "3.2 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (250, "4 min 10 s"),
        (3599.7, "1 h 0 min"), (7500, "2 h 5 min"),
        (59.97, "1 min 0 s"),
    ],
)  # fmt: skip
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


def test_progress_passes_items_on_and_reports_shares(capsys):
    assert list(progress([5, 6, 7, 8], "counting", every=0)) == [5, 6, 7, 8]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["counting: 25%", "counting: 50%", "counting: 75%"]
    assert list(progress(iter("ab"), "reading", every=0)) == ["a", "b"]
    assert capsys.readouterr().err == "reading: 1 done\nreading: 2 done\n"


def test_progress_is_silent_when_it_is_quick(capsys):
    assert sum(progress(range(1000), "counting")) == 499_500
    assert capsys.readouterr().err == ""


def test_a_compiled_function_gives_what_the_plain_one_gives():
    def total(values):
        result = 0.0
        for value in values:
            result += value * value
        return result

    values = np.arange(10.0)
    assert compiled(total)(values) == total(values) == 285.0
    assert compiled(total).__name__ == "total"
