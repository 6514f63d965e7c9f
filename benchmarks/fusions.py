"""What every fusion finds where the truth is known, and what it loses when modalities are missing.

Planted (see `planted.py`): effects of three modalities and a product of two. Each fusion is trained on people who have
everything, with and without modality dropout, on people who lack 30% or 60% of their modalities, and on those of the
latter who are complete (as many steps). It is tested on others like them, and on people of whom nobody has a modality.

Biobank: HbA1c of the synthetic biobank from lifestyle, blood and genotypes, where the genetic score acts more strongly
in heavier people. Each fusion starts at the same ridge regression. What can be attained from what was measured is what least squares reach
that are told the true genetic score and its products with all measurements ("told"), or the score alone ("told, additive").

Each result is a row of `results/fusions.tsv`; fusions that are not asked for keep theirs.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from common import print_versions
from planted import NAMES, People, best_r2, draw, network, r2, train

from ukbmm.biobank.population import CHUNK, draw_people
from ukbmm.biobank.store import Biobank
from ukbmm.biobank.synthetic import synthetic_biobank
from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.core import progress, write_text
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import fitted_loaders
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.layers import FUSIONS
from ukbmm.models.multimodal import ModelSettings
from ukbmm.models.ridge import cross_fit
from ukbmm.models.tabular import tabular_design
from ukbmm.training.learner import fusion_learner, predict_rows

RESULTS = Path(__file__).parent / "results" / "fusions.tsv"
COLUMNS = ("study", "fusion", "trained_on", "tested_on", "seed", "n_train", "r2", "best")
SHARES = (0.3, 0.6)


def planted(kind: str, seed: int, n: int, epochs: int) -> Iterator[tuple]:
    "Train and test a fusion on planted effects: rows of the table."
    everybody, others = draw(n, 2 * seed), draw(n, 2 * seed + 1)
    tests = {"everything": others, **{f"without {name}": others.without(i) for i, name in enumerate(NAMES)}}
    yield from planted_row(kind, seed, "everything", everybody, tests, epochs)
    yield from planted_row(kind, seed, "everything, modality dropout", everybody, tests, epochs, hide=0.3)
    for share in SHARES:
        name = f"{share:.0%} missing"
        lacking, tests = everybody.lacking(share, seed), {name: others.lacking(share, seed + 1000)}
        yield from planted_row(kind, seed, name, lacking, tests, epochs)
        complete = lacking[lacking.present.all(dim=1).nonzero()[:, 0]]
        longer = round(epochs * (n // 256) / max(1, len(complete.y) // 256))  # as many steps
        yield from planted_row(kind, seed, f"complete cases of {name}", complete, tests, longer)


def planted_row(kind: str, seed: int, trained_on: str, people: People, tests: dict[str, People], epochs: int,
                hide: float = 0.0) -> Iterator[tuple]:  # fmt: skip
    "Train a fusion once and test it on several sets of people."
    model = train(network(kind, seed), people, seed, epochs, hide=hide)
    for tested_on, others in tests.items():
        yield (
            "planted",
            kind,
            trained_on,
            tested_on,
            seed,
            len(people.y),
            r2(model, others),
            best_r2(others),
        )


def biobank_study(folder: Path, participants: int, variants: int, seed: int) -> dict:
    "A fold of a study of the synthetic biobank, and the ridge regression that every network starts from."
    biobank = synthetic_biobank(folder / "synthetic.biobank", participants, variants, seed)
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=4, inner=4), seed)
    rows, test = split.development(0), split.test(0)
    blocks = {"lifestyle": PhenotypeBlock([31, 21003, 21001, 20116]), "blood": PhenotypeBlock([30690, 30870]), "snps": SNPBlock()}  # fmt: skip
    blocks = {name: block.fit(biobank, rows) for name, block in blocks.items()}
    target = OutcomeBlock(outcome).fit(biobank, rows)
    linear = cross_fit(blocks, target, rows, [split.valid(0, i) for i in range(4)])
    additive = linear.shown(len(biobank))
    dls = fitted_loaders(
        blocks, target, split.train(0, 0), split.valid(0, 0), 256, seed, 0, additive, device="cpu"
    )
    return {"dls": dls, "linear": linear, "test": test, "known": target.batch(torch.from_numpy(test))[:, 0].numpy(),
            "target": target, "rows": rows,
            "genetic": true_score(biobank, participants, variants, seed)}  # fmt: skip


def told(study: dict, products: bool) -> float:
    "R2 of least squares on everything that was measured and the true genetic score, with or without their products."
    blocks, rows = study["dls"].blocks, torch.arange(len(study["genetic"]))
    tables = [block for block in blocks.values() if isinstance(block, PhenotypeBlock)]
    measured = torch.cat([tabular_design(*b.transform(b.batch(rows)), b.levels.sizes) for b in tables], dim=1)
    genetic = study["genetic"] * blocks["snps"].present(rows)
    parts = [
        torch.ones(len(rows), 1),
        measured,
        genetic[:, None],
        blocks["snps"].present(rows).float()[:, None],
    ]
    design = torch.cat([*parts, *([measured * genetic[:, None]] if products else [])], dim=1).double()
    y, learn = study["target"].batch(rows).double(), torch.from_numpy(study["rows"])
    fit = torch.linalg.lstsq(design[learn], y[learn], driver="gelsd").solution
    return float(np.corrcoef((design[study["test"]] @ fit)[:, 0], study["known"])[0, 1] ** 2)


def true_score(biobank: Biobank, participants: int, variants: int, seed: int) -> torch.Tensor:
    "The genetic score that the synthetic people were drawn with, in the order of the Biobank."
    chunks = [
        draw_people(i, seed, variants).select("eid", "genetic") for i in range(-(-participants // CHUNK))
    ]
    drawn = pl.read_parquet(biobank.path / "participants.parquet", columns=["eid"]).join(
        pl.concat(chunks), on="eid", how="left", maintain_order="left"
    )
    return torch.tensor(drawn["genetic"].to_numpy()).float()


def of_biobank(study: dict, kind: str, seed: int, epochs: int) -> tuple:
    "Train and test a fusion on the synthetic biobank: a row of the table."
    settings = ModelSettings(fusion=FusionSettings(kind=kind))
    learn = fusion_learner(study["dls"], settings, linear=study["linear"], seed=seed)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 3e-3)
    found = np.corrcoef(predict_rows(learn, study["test"])[:, 0], study["known"])[0, 1] ** 2
    return row_of_biobank(study, kind, seed, found)


def row_of_biobank(study: dict, kind: str, seed: int, found: float) -> tuple:
    "A row of the table; the best is what is told the true genetic score and its products."
    n = len(study["dls"].train.rows)
    return ("biobank", kind, "everything", "everything", seed, n, float(found), told(study, products=True))


def keep(rows: list[tuple]) -> None:
    "Put rows in the place of those of the same study, fusion, training, test and seed."
    new = pl.DataFrame(rows, schema=COLUMNS, orient="row").with_columns(pl.col("r2", "best").round(4))
    if RESULTS.is_file():
        old = pl.read_csv(RESULTS, separator="\t").cast(dict(new.schema))
        new = pl.concat([old.join(new, on=list(COLUMNS[:5]), how="anti"), new])
    RESULTS.parent.mkdir(exist_ok=True)
    write_text(RESULTS, new.sort(COLUMNS[:5]).write_csv(separator="\t"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small size, to see that it works; writes nothing"
    )
    parser.add_argument(
        "--studies", nargs="+", choices=["planted", "biobank"], default=["planted", "biobank"]
    )
    parser.add_argument("--fusions", nargs="+", choices=FUSIONS.names(), default=FUSIONS.names())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)  # such small steps gain nothing from more
    print_versions()
    n, epochs, write = (1024, 2, print) if options.quick else (8192, 12, keep)
    if "planted" in options.studies:
        for kind in progress(options.fusions, "planted effects"):
            for seed in options.seeds:
                write(list(planted(kind, seed, n, epochs)))
    if "biobank" in options.studies:
        size = (400, 60) if options.quick else (16_000, 100)
        with tempfile.TemporaryDirectory() as folder:
            for seed in options.seeds:
                study = biobank_study(Path(folder) / str(seed), *size, seed)
                linear = study["linear"].predict(study["dls"].blocks, study["test"])[:, 0]
                write([row_of_biobank(study, "ridge", seed, np.corrcoef(linear, study["known"])[0, 1] ** 2),
                       row_of_biobank(study, "told, additive", seed, told(study, products=False))])  # fmt: skip
                for kind in progress(options.fusions, "synthetic biobank"):
                    write([of_biobank(study, kind, seed, 2 if options.quick else 20)])


if __name__ == "__main__":
    main()
