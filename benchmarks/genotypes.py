"""Batches of genotypes: our store, bed-reader on the PLINK file, and the limit, a raw read of the same bytes.

The limit is the faster of two: the rows of a plain memory map, or one system call for each person. All files are in the operating system's cache when they are read. The store is built in a process of its own, whose
highest memory (VmHWM, which counts mapped files too) is reported for several numbers of people.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import arguments, print_table, print_versions, ratio, seconds, verdict

from ukbmm.biobank.genotypes import GenotypeStore, build_genotypes, unpack

BATCH = 256
OVER_PEER, OVER_LIMIT, MEMORY_GIB = 30, 2, 3  # Targets


def write_random_bed(prefix: Path, people: int, variants: int) -> int:
    "Write random PLINK files in pieces of 16 MB, every code as likely as another; returns the bytes of the .bed."
    rng, record = np.random.default_rng(0), -(-people // 4)
    step = max(1, (16 << 20) // record)
    with prefix.with_suffix(".bed").open("wb") as stream:
        stream.write(b"\x6c\x1b\x01")
        for start in range(0, variants, step):
            block = rng.integers(0, 256, (min(step, variants - start), record), dtype=np.uint8)
            block[:, -1] &= 0xFF >> (2 * (-people % 4))
            stream.write(block.data)
    prefix.with_suffix(".fam").write_text("".join(f"{i} {i} 0 0 1 -9\n" for i in range(1, people + 1)))
    prefix.with_suffix(".bim").write_text("".join(f"1 v{i} 0 {i} A C\n" for i in range(1, variants + 1)))
    return prefix.with_suffix(".bed").stat().st_size


def peak_bytes() -> int:
    "The most memory that this process has held."
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def build(prefix: str, out: str, memory_gib: str) -> None:
    "Build a store and print what that took; runs in a process of its own."
    before, start = peak_bytes(), time.perf_counter()
    build_genotypes([prefix], out, lambda eids: eids - 1, memory_gib=float(memory_gib))
    print(json.dumps({"seconds": time.perf_counter() - start, "before": before, "peak": peak_bytes()}))


def build_apart(prefix: Path, out: Path, memory_gib: float) -> dict[str, float]:
    "Build a store in another process."
    command = [sys.executable, __file__, "build", str(prefix), str(out), str(memory_gib)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_builds(folder: Path, sizes: list[tuple[int, int, float]]) -> list[dict]:
    "Build a store of each size; the files of the first stay."
    found = []
    for i, (people, variants, memory_gib) in enumerate(sizes):
        prefix, out = folder / f"set{i}", folder / f"store{i}"
        size = write_random_bed(prefix, people, variants)
        taken = build_apart(prefix, out, memory_gib)
        found.append({"people": people, "variants": variants, "slab": memory_gib, "bytes": size, **taken})
        if i:
            prefix.with_suffix(".bed").unlink()
            (out / "geno.u8").unlink()
    return found


def read_raw(store: GenotypeStore, samples: np.ndarray, out: np.ndarray) -> np.ndarray:
    "Read the records of some people with one system call each: no library between."
    with (store.path / "geno.u8").open("rb", buffering=0) as stream:
        for i, sample in enumerate(samples):
            os.preadv(stream.fileno(), [out[i].data], int(sample) * out.shape[1])
    return out


def measure_reads(folder: Path, repeats: int, clock: str) -> dict[str, list[float]]:
    "Seconds of a batch of random people read in each way, after checking that all give the same values."
    from bed_reader import open_bed  # the peer; training.py uses this file without it

    store, bed = GenotypeStore(folder / "store0"), open_bed(folder / "set0.bed", count_A1=True)
    people, row_bytes = store.meta["shape"]
    rng, out = np.random.default_rng(1), np.empty((BATCH, row_bytes), np.uint8)
    mapped = np.memmap(store.path / "geno.u8", np.uint8, "r", shape=(people, row_bytes))
    draw = lambda: rng.choice(people, BATCH, replace=False)  # noqa: E731
    rows = draw()
    packed = store.packed(rows)
    np.testing.assert_array_equal(packed, read_raw(store, rows, out))
    expected = bed.read(np.s_[rows, :], dtype=np.int8)
    np.testing.assert_array_equal(unpack(packed, store.variants), np.where(expected == -127, -1, expected))
    calls = {
        "packed": lambda: store.packed(draw()),
        "unpacked": lambda: unpack(store.packed(draw()), store.variants),
        "mapped": lambda: mapped.take(draw(), axis=0, out=out, mode="clip"),
        "calls": lambda: read_raw(store, draw(), out),
        "peer": lambda: bed.read(np.s_[draw(), :], dtype=np.int8),
    }
    return seconds(calls, repeats, clock)


def report_reads(taken: dict[str, list[float]], megabytes: float) -> None:
    "Print what a batch takes in each way, and whether the targets hold."
    names = {"packed": "ours, packed", "unpacked": "ours, unpacked to int8", "peer": "bed-reader, int8",
             "mapped": "raw read, memory map", "calls": "raw read, system calls"}  # fmt: skip
    limit, rows = min(("mapped", "calls"), key=lambda name: statistics.median(taken[name])), []
    for name, title in names.items():
        faster, slower = ratio(taken["peer"], taken[name]), ratio(taken[name], taken[limit])
        title = f"limit: {title}" if name == limit else title
        targets = {"packed": f"{verdict(faster >= OVER_PEER)} (>= {OVER_PEER}), "
                   f"{verdict(slower <= OVER_LIMIT)} (<= {OVER_LIMIT})"}  # fmt: skip
        milliseconds = 1e3 * statistics.median(taken[name])
        rows.append([title, f"{milliseconds:.2f}", f"{BATCH / milliseconds * 1e3:,.0f}", f"{faster:,.1f}",
                     f"{slower:.2f}", targets.get(name, "")])  # fmt: skip
    print(f"a batch of {BATCH} random people, {megabytes:.2f} MB packed")
    header = ["way", "ms", "people/s", "times bed-reader", "time / limit", "target"]
    print_table(header, rows)


def report_builds(found: list[dict]) -> None:
    "Print what building took, and whether memory stayed within the target."
    rows = []
    for f in found:
        peak, before = f["peak"] / 2**30, f["before"] / 2**30
        rows.append([f"{f['people']:,} x {f['variants']:,}", f"{f['bytes'] / 1e9:.2f}", f"{f['slab']:g}",
                     f"{f['seconds']:.1f}", f"{f['bytes'] / 1e9 / f['seconds']:.2f}", f"{before:.2f}", f"{peak:.2f}",
                     f"{verdict(peak <= MEMORY_GIB)} (<= {MEMORY_GIB} GiB)"])  # fmt: skip
    print(
        "building the store: a slab, one chunk of input and the lists of people and variants are all that is held"
    )
    print_table(["people x variants", ".bed, GB", "slab limit, GiB", "s", "GB/s", "memory before, GiB", "peak, GiB",
                 "target"], rows)  # fmt: skip


def main() -> None:
    options = arguments(__doc__)
    # The slab limit of 1.5 GiB is the default; the small ones make several slabs, as a whole cohort would
    sizes = [(50_000, 20_000, 1.5), (50_000, 5_000, 0.02), (100_000, 5_000, 0.02), (400_000, 5_000, 0.02)]
    if options.quick:
        sizes = [(2_000, 1_000, 1.5), (4_000, 1_000, 0.0005)]
    with tempfile.TemporaryDirectory() as name:
        built = measure_builds(Path(name), sizes)
        taken = measure_reads(Path(name), options.repeats or (2 if options.quick else 15), options.clock)
        row_bytes = GenotypeStore(Path(name) / "store0").meta["shape"][1]
    print_versions("bed-reader", "numba", "numpy")
    report_builds(built)
    report_reads(taken, BATCH * row_bytes / 1e6)


if __name__ == "__main__":
    build(*sys.argv[2:]) if sys.argv[1:2] == ["build"] else main()
