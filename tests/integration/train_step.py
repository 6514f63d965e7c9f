"""One train step of the demonstration and every import: what has to work with the newest fastai too.

Run as a program it needs nothing but the installed package: python tests/integration/train_step.py
"""

import importlib
import pkgutil
import tempfile
from pathlib import Path


def import_all() -> list[str]:
    "Import every module of the package; returns their names."
    import ukbmm

    found = [module.name for module in pkgutil.walk_packages(ukbmm.__path__, "ukbmm.")]
    wanted = [name for name in found if not name.endswith("__main__")]
    for name in wanted:
        importlib.import_module(name)
    return wanted


def train_step(folder: Path) -> tuple[float, float]:
    "Train the demonstration's network for one epoch; returns the validation losses before and after."
    from ukbmm.biobank.synthetic import synthetic_biobank
    from ukbmm.cohort.cohort import define_cohort
    from ukbmm.cohort.outcomes import read_outcome
    from ukbmm.cohort.splits import split_cohort
    from ukbmm.data.blocks import OutcomeBlock
    from ukbmm.data.loaders import MultiModalDataBlock
    from ukbmm.training.learner import fusion_learner
    from ukbmm.workflow.spec import Spec, demo_spec

    spec = Spec.parse(demo_spec())
    biobank = synthetic_biobank(folder / "step.biobank", participants=600, variants=100, seed=1)
    cohort = define_cohort(biobank, read_outcome(biobank, spec.outcome))
    split = split_cohort(cohort, biobank, spec.validation, seed=1)
    inputs = [modality.block(name) for name, modality in spec.modalities.items()]
    recipe = MultiModalDataBlock(blocks=(*inputs, OutcomeBlock(cohort.outcome)))
    dls = recipe.dataloaders(biobank, train=split.train(0, 0), valid=split.valid(0, 0), bs=64)
    learn = fusion_learner(dls, seed=1)
    with learn.no_bar(), learn.no_logging():
        before = float(learn.validate()[0])
        learn.fit_one_cycle(1, 5e-3)
    return before, float(learn.validate()[0])


if __name__ == "__main__":
    from importlib.metadata import version

    print(f"{len(import_all())} modules with fastai {version('fastai')}, fastcore {version('fastcore')}")
    with tempfile.TemporaryDirectory() as name:
        before, after = train_step(Path(name))
    print(f"validation loss {before:.3f} before, {after:.3f} after one epoch")
    if not after < before:
        raise SystemExit("the network did not learn")
