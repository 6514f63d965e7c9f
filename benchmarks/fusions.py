"""What every fusion finds where the truth is known, and what it loses when modalities are missing.

Planted (see `planted.py`): effects of three modalities and a product of two, `n` people who have everything.
Biobank: HbA1c of the synthetic biobank from lifestyle, blood and genotypes, where the genetic score acts more strongly
in heavier people. Each network starts at the ridge regression of the people it is trained on. What can be attained is
what least squares reach that are told the true genetic score and its products with all measurements ("told"), or the
score alone ("told, additive").

In both studies each fusion is trained with the default share of modality dropout on people who have everything, on
people who lack 30% or 60% of their modalities, and on those of the latter who are complete (as many steps); and without
modality dropout on people who have everything. It is tested on others like them, and on people of whom nobody has a
modality. "only a" is the default fusion that was given the modality a alone.
With seeds after the first, modalities are missing from the training of the default fusion only.

Each result is a row of `results/fusions.tsv`; fusions and seeds that are not asked for keep theirs.
"""

import argparse
import tempfile
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from common import print_versions
from planted import NAMES, People, best_r2, draw, network, r2, train
from sklearn.metrics import r2_score
from torch import Tensor

from ukbmm.biobank.population import CHUNK, draw_people
from ukbmm.biobank.store import Biobank
from ukbmm.biobank.synthetic import synthetic_biobank
from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.core import progress, write_text
from ukbmm.data.blocks import Block, OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import fitted_loaders
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.layers import FUSIONS
from ukbmm.models.multimodal import ModelSettings, hide_modalities
from ukbmm.models.ridge import cross_fit
from ukbmm.models.tabular import tabular_design
from ukbmm.training.learner import fusion_learner, predict_rows

RESULTS = Path(__file__).parent / "results" / "fusions.tsv"
COLUMNS = ("study", "fusion", "trained_on", "tested_on", "seed", "n_train", "r2", "best")
SHARES = (0.3, 0.6)
HIDE = FusionSettings().modality_dropout
ALL, PLAIN = "everything", "everything, no modality dropout"


def as_many_steps(epochs: int, n: int, fewer: int) -> int:
    "Epochs that give `fewer` people as many steps of 256 as `n` people have."
    return round(epochs * (n // 256) / max(1, fewer // 256))


def shares_of(kind: str, seed: int) -> tuple[float, ...]:
    "Shares of missing modalities to train with: of the default fusion with each seed, of others with the first alone."
    return SHARES if seed == 0 or kind in (FusionSettings().kind, "ridge") else ()


# ---- planted effects --------------------------------------------------------------------------------------------


def planted(kind: str, seed: int, n: int, epochs: int) -> Iterator[tuple]:
    "Train and test a fusion on planted effects: rows of the table."
    everybody, others = draw(n, 2 * seed), draw(n, 2 * seed + 1)
    tests = {ALL: others, **{f"without {name}": others.without(i) for i, name in enumerate(NAMES)}}
    yield from planted_rows(kind, seed, ALL, everybody, tests, epochs)
    yield from planted_rows(kind, seed, PLAIN, everybody, tests, epochs, hide=0.0)
    for share in shares_of(kind, seed):
        name = f"{share:.0%} missing"
        lacking, tests = everybody.lacking(share, seed), {name: others.lacking(share, seed + 1000)}
        yield from planted_rows(kind, seed, name, lacking, tests, epochs)
        complete = lacking[lacking.present.all(dim=1).nonzero()[:, 0]]
        longer = as_many_steps(epochs, n, len(complete.y))
        yield from planted_rows(kind, seed, f"complete cases of {name}", complete, tests, longer)


def planted_rows(kind: str, seed: int, trained_on: str, people: People, tests: dict[str, People], epochs: int,
                 hide: float = HIDE, named: str | None = None) -> Iterator[tuple]:  # fmt: skip
    "Train a fusion once and test it on several sets of people."
    model, n = train(network(kind, seed), people, seed, epochs, hide=hide), len(people.y)
    for tested_on, others in tests.items():
        yield ("planted", named or kind, trained_on, tested_on, seed, n, r2(model, others), best_r2(others))


def planted_alone(seed: int, n: int, epochs: int) -> Iterator[tuple]:
    "Train the default fusion on one modality alone, each in its turn."
    everybody, others = draw(n, 2 * seed), draw(n, 2 * seed + 1)
    for i, name in enumerate(NAMES):
        alone = [people.only(i) for people in (everybody, others)]
        yield from planted_rows(FusionSettings().kind, seed, ALL, alone[0], {ALL: alone[1]}, epochs, 0.0, f"only {name}")  # fmt: skip


# ---- the synthetic biobank --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    "A fold of a study of the synthetic biobank."

    blocks: dict[str, Block]  # Fitted blocks
    target: OutcomeBlock
    rows: np.ndarray  # Rows to learn from and to choose by
    groups: list[np.ndarray]  # The same in inner folds; the first chooses
    test: np.ndarray  # Rows nobody was trained on
    genetic: Tensor  # The true genetic score of everybody

    @property
    def present(self) -> Tensor:  # bool [participant, modality]
        "Who has which modality."
        everybody = torch.arange(len(self.genetic))
        return torch.stack([block.present(everybody) for block in self.blocks.values()], dim=1)

    def where(self, kept: Tensor) -> "Study":
        "The same people, who have those modalities only."
        blocks = {name: copy(block) for name, block in self.blocks.items()}
        for block, there in zip(blocks.values(), kept.unbind(1), strict=True):
            block.present = there.clone().__getitem__
        some = {"rows": self.rows, "test": self.test}
        some = {name: rows[kept[rows].any(dim=1).numpy()] for name, rows in some.items()}
        groups = [group[kept[group].any(dim=1).numpy()] for group in self.groups]
        return replace(self, blocks=blocks, groups=groups, **some)

    def lacking(self, share: float, seed: int) -> "Study":
        "The same people, who lack each modality at random, but never all."
        rows = torch.arange(len(self.genetic))
        return self.where(hide_modalities(self.present, rows, share, seed, 0))

    def without(self, i: int) -> "Study":
        "The same people, of whom nobody has a modality."
        return self.where(self.present & (torch.arange(len(self.blocks)) != i))

    def complete(self) -> "Study":
        "Learned from those who have everything; tested on the same people as before."
        whole = self.present.all(dim=1).numpy()
        groups = [group[whole[group]] for group in self.groups]
        return replace(self, rows=self.rows[whole[self.rows]], groups=groups)

    def alone(self, name: str) -> "Study":
        "Those who have a modality, and nothing else of them."
        i = list(self.blocks).index(name)
        chosen = self.where(self.present & (torch.arange(len(self.blocks)) == i))
        return replace(chosen, blocks={name: chosen.blocks[name]})


def biobank_study(folder: Path, participants: int, variants: int, seed: int) -> Study:
    "Make a synthetic biobank and define the study."
    biobank = synthetic_biobank(folder / "synthetic.biobank", participants, variants, seed)
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=4, inner=4), seed)
    rows = split.development(0)
    blocks = {"lifestyle": PhenotypeBlock([31, 21003, 21001, 20116]), "blood": PhenotypeBlock([30690, 30870]), "snps": SNPBlock()}  # fmt: skip
    blocks = {name: block.fit(biobank, rows) for name, block in blocks.items()}
    target, groups = OutcomeBlock(outcome).fit(biobank, rows), [split.valid(0, i) for i in range(4)]
    genetic = true_score(biobank, participants, variants, seed)
    return Study(blocks, target, rows, groups, split.test(0), genetic)


class Trained:
    "A ridge regression and, of a fusion, a network that starts at it."

    def __init__(self, study: Study, settings: FusionSettings | None, seed: int, epochs: int):
        self.linear = cross_fit(study.blocks, study.target, study.rows, study.groups)
        self.n, self.learn = len(study.rows), None
        if settings is None:
            return
        shown, valid = self.linear.shown(len(study.genetic)), study.groups[0]
        rows = np.setdiff1d(study.rows, valid)
        dls = fitted_loaders(study.blocks, study.target, rows, valid, 256, seed, 0, shown, device="cpu")
        self.n = len(rows)
        self.learn = fusion_learner(dls, ModelSettings(fusion=settings), linear=self.linear, seed=seed)
        with self.learn.no_bar(), self.learn.no_logging():
            self.learn.fit_one_cycle(epochs, 3e-3)

    def r2(self, study: Study) -> float:
        "The share of the outcome's variance that it explains among a study's people to be tested."
        known = study.target.batch(torch.from_numpy(study.test)).double().numpy()
        if self.learn is None:
            return float(r2_score(known, self.linear.predict(study.blocks, study.test)))
        self.learn.dls.train.blocks = self.learn.dls.valid.blocks = study.blocks
        return float(r2_score(study.target.decode(known), predict_rows(self.learn, study.test)))


def of_biobank(study: Study, kind: str, seed: int, epochs: int) -> Iterator[tuple]:
    "Train and test a fusion, or the ridge regression alone, on the synthetic biobank: rows of the table."
    settings = None if kind == "ridge" else FusionSettings(kind=kind)
    tests = {ALL: study, **{f"without {name}": study.without(i) for i, name in enumerate(study.blocks)}}
    yield from biobank_rows(kind, seed, ALL, Trained(study, settings, seed, epochs), tests)
    if settings:
        plain = FusionSettings(kind=kind, modality_dropout=0.0)
        yield from biobank_rows(kind, seed, PLAIN, Trained(study, plain, seed, epochs), tests)
    for share in shares_of(kind, seed):
        name, lacking = f"{share:.0%} missing", study.lacking(share, seed)
        yield from biobank_rows(kind, seed, name, Trained(lacking, settings, seed, epochs), {name: lacking})
        complete = lacking.complete()
        longer = as_many_steps(epochs, len(lacking.rows), len(complete.rows))
        of_complete = Trained(complete, settings, seed, longer)
        yield from biobank_rows(kind, seed, f"complete cases of {name}", of_complete, {name: lacking})


def biobank_rows(kind: str, seed: int, trained_on: str, trained: Trained, tests: dict[str, Study]) -> Iterator[tuple]:  # fmt: skip
    "Test what was trained on several sets of people; the best is what is told the true genetic score and its products."
    for tested_on, study in tests.items():
        best = told(study, products=True)
        yield ("biobank", kind, trained_on, tested_on, seed, trained.n, trained.r2(study), best)


def biobank_alone(study: Study, seed: int, epochs: int) -> Iterator[tuple]:
    "Train the default fusion on one modality alone, each in its turn; tested on those who have it."
    for name in study.blocks:
        alone = study.alone(name)
        yield from biobank_rows(f"only {name}", seed, ALL, Trained(alone, FusionSettings(modality_dropout=0.0), seed, epochs), {ALL: alone})  # fmt: skip


def told(study: Study, products: bool) -> float:
    "R2 of least squares on everything that was measured and the true genetic score, with or without their products."
    rows = torch.arange(len(study.genetic))
    there = {name: block.present(rows)[:, None].float() for name, block in study.blocks.items()}
    tables = {name: block for name, block in study.blocks.items() if isinstance(block, PhenotypeBlock)}
    measured = [tabular_design(*block.transform(block.batch(rows)), block.levels.sizes) * there[name]
                for name, block in tables.items()]  # fmt: skip
    measured = torch.cat([torch.zeros(len(rows), 0), *measured, *(there[name] for name in tables)], dim=1)
    genetic = study.genetic[:, None] * there.get("snps", torch.zeros(1))
    parts = [torch.ones(len(rows), 1), measured, genetic, *([there["snps"]] if "snps" in there else [])]
    design = torch.cat([*parts, *([measured * genetic] if products else [])], dim=1).double()
    y, learn = study.target.batch(rows).double(), torch.from_numpy(study.rows)
    fit = torch.linalg.lstsq(design[learn], y[learn], driver="gelsd").solution
    test = torch.from_numpy(study.test)
    return float(r2_score(y[test], design[test] @ fit))


def true_score(biobank: Biobank, participants: int, variants: int, seed: int) -> torch.Tensor:
    "The genetic score that the synthetic people were drawn with, in the order of the Biobank."
    chunks = [
        draw_people(i, seed, variants).select("eid", "genetic") for i in range(-(-participants // CHUNK))
    ]
    drawn = pl.read_parquet(biobank.path / "participants.parquet", columns=["eid"]).join(
        pl.concat(chunks), on="eid", how="left", maintain_order="left"
    )
    return torch.tensor(drawn["genetic"].to_numpy()).float()


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
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)  # such small steps gain nothing from more
    print_versions()
    n, epochs, write = (1024, 2, print) if options.quick else (8192, 16, keep)
    if "planted" in options.studies:
        for seed in options.seeds:
            write(list(planted_alone(seed, n, epochs)))
            for kind in progress(options.fusions, f"planted effects, seed {seed}"):
                write(list(planted(kind, seed, n, epochs)))
    if "biobank" in options.studies:
        size, epochs = ((800, 60), 2) if options.quick else ((16_000, 100), 20)
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                study = biobank_study(Path(folder), *size, seed)
                best, additive = (told(study, products) for products in (True, False))
                write([("biobank", "told, additive", ALL, ALL, seed, len(study.rows), additive, best)])
                write(list(biobank_alone(study, seed, epochs)))
                for kind in progress(["ridge", *options.fusions], f"synthetic biobank, seed {seed}"):
                    write(list(of_biobank(study, kind, seed, epochs)))


if __name__ == "__main__":
    main()
