"""Two real processes on processors, over gloo: they train what one trains, and a dead one ends the job."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from fastai.callback.core import Callback
from processes import together
from torch import nn

from ukbmm.biobank.synthetic import synthetic_biobank
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import UkbmmError
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock, own_slice, slice_sizes
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.losses import RegressionLoss
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training.callbacks import take_weights
from ukbmm.training.checkpoint import Checkpoint
from ukbmm.training.distributed import Distributed, Processes
from ukbmm.training.learner import fusion_learner, predict_rows
from ukbmm.training.techniques import GradientModulation
from ukbmm.workflow.pipeline import TrainingPipeline
from ukbmm.workflow.run import Run
from ukbmm.workflow.spec import Spec

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ModelSettings(
    fusion=FusionSettings(dim=8, dropout=0.0), hidden=8
)  # dropout of attention is no module
BOTH = pytest.mark.parametrize("sharded", [False, True], ids=["copies", "shared"])


@pytest.fixture(scope="module")
def loaders(biobank):
    "Loaders whose last training batch has one participant: fewer than there are processes."
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    rows = np.random.default_rng(0).permutation(np.flatnonzero(outcome.known))
    recipe = MultiModalDataBlock(
        (PhenotypeBlock([31, 21003, 21001, 30690, 30760]), SNPBlock(every=2), OutcomeBlock(outcome))
    )
    dls = recipe.dataloaders(biobank, rows[:225], rows[225:300], bs=32, seed=3, device="cpu")
    dls.one_batch()
    return dls


def train(dls, processes=None, dropout=0.0, checkpoints=None, cbs=(), loss=None, shape=SMALL, **settings):
    "Train alone or with others; returns the learner."
    cbs = [*cbs, *([Distributed(processes)] if processes else [])]
    cbs += [Checkpoint(checkpoints, every=3)] if checkpoints else []
    learn = fusion_learner(
        type(dls)(dls.train.new(), dls.valid.new(), device="cpu"),
        shape,
        **{"seed": 5, "patience": 3, **settings},
        cbs=cbs,
    )
    learn.loss_func = loss or learn.loss_func
    for module in learn.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 8e-3)
    return learn


def outcome_of(learn, rows) -> dict:
    "What a training ends with."
    return {
        "losses": learn.best_weights.losses,
        "values": [list(one) for one in learn.recorder.values],
        "smooth": torch.stack(learn.recorder.losses),
        "predicted": torch.from_numpy(predict_rows(learn, rows)),
        "world": learn.dls.train.world,
        "best": learn.best_weights.weights,
    }


def both(dls, folder: Path, sharded=False, **settings) -> list[dict]:
    "Train in two processes; returns what each ended with."
    folder.mkdir(parents=True, exist_ok=True)

    def work(processes):
        learn = train(dls, processes, **settings)
        torch.save(outcome_of(learn, dls.valid.rows), folder / f"{processes.rank}.pt")

    assert together(work, sharded=sharded) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def agree(one: dict, other: dict, tolerance: float) -> None:
    "Two trainings came to the same, but for rounding."
    for name in ("losses", "values", "smooth", "predicted"):
        a, b = (np.asarray(outcome[name], dtype=np.float64) for outcome in (one, other))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def test_slices_are_the_batch():
    for n in range(1, 12):
        for world in range(1, 6):
            batch, sizes = torch.arange(n), slice_sizes(n, world)
            parts = [own_slice(batch, rank, world)[: sizes[rank]] for rank in range(world)]
            assert torch.equal(torch.cat(parts), batch) and max(sizes) - min(sizes) <= 1
            assert all(len(own_slice(batch, rank, world)) for rank in range(world))


@BOTH
def test_two_processes_come_to_what_one_comes_to(loaders, tmp_path, sharded):
    alone = outcome_of(train(loaders), loaders.valid.rows)
    first, second = both(loaders, tmp_path, sharded)
    assert first["world"] == second["world"] == 2
    agree(first, alone, 2e-4)
    agree(first, second, 0)  # both processes know the same numbers
    assert alone["losses"][1] != alone["losses"][0]


@BOTH
def test_accumulated_clipped_and_in_16_bits(loaders, tmp_path, sharded):
    settings = {"accumulate": 3, "clip": 0.5}
    alone = outcome_of(train(loaders, **settings), loaders.valid.rows)
    agree(both(loaders, tmp_path / "single", sharded, **settings)[0], alone, 2e-4)
    half = both(loaders, tmp_path / "half", sharded, amp="bf16", **settings)[0]
    agree(half, alone, 0.1)
    assert half["losses"] != alone["losses"]


class Pairs(RegressionLoss):
    "A loss that compares everybody of a batch with everybody, as Cox regression does."

    gathers = True

    def __call__(self, output, target):
        each = ((output - output.T) - (target - target.T)).square().mean(1, keepdim=True)
        return each if self.reduction == "none" else each.mean()


def test_a_loss_of_the_whole_batch_is_right(loaders, tmp_path):
    alone = outcome_of(train(loaders, loss=Pairs()), loaders.valid.rows)
    agree(both(loaders, tmp_path, loss=Pairs())[0], alone, 2e-4)


@BOTH
def test_heads_of_single_modalities_see_the_whole_batch(loaders, tmp_path, sharded):
    fusion = SMALL.fusion.model_copy(update={"auxiliary": 0.5, "modality_dropout": 0.3})
    how = {"shape": SMALL.model_copy(update={"fusion": fusion}), "loss": Pairs(), "accumulate": 2}
    alone = outcome_of(train(loaders, **how), loaders.valid.rows)
    agree(both(loaders, tmp_path, sharded, **how)[0], alone, 2e-4)
    assert (
        alone["losses"]
        != outcome_of(train(loaders, loss=Pairs(), accumulate=2), loaders.valid.rows)["losses"]
    )


def test_modulation_compares_modalities_over_the_whole_batch(loaders, tmp_path):
    def how():
        return {"loss": Pairs(), "cbs": [GradientModulation(0.4)]}

    alone = outcome_of(train(loaders, **how()), loaders.valid.rows)
    agree(both(loaders, tmp_path, **how())[0], alone, 1e-3)  # scores of single modalities multiply roundings


@BOTH
def test_predictions_with_inputs_and_losses_are_those_of_one_process(loaders, tmp_path, sharded):
    def predicted(learn):
        with learn.no_bar(), learn.no_logging():
            x, *others = learn.get_preds(with_input=True, with_loss=True)
        return [x["row"], *others]

    def work(processes):
        torch.save(predicted(train(loaders, processes)), tmp_path / f"{processes.rank}.pt")

    assert together(work, sharded=sharded) == [0, 0]
    for rank in range(2):
        for one, other in zip(predicted(train(loaders)), torch.load(tmp_path / f"{rank}.pt"), strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


class Rows(Callback):
    "Note whom the own slice of each training batch holds, and whom a validation batch holds."

    def __init__(self):
        self.seen = {}

    def before_batch(self):
        kind, dl = "train" if self.learn.training else "valid", self.learn.dl
        rows = self.learn.x["row"][: slice_sizes(dl.whole, dl.world)[dl.rank]].tolist()
        self.seen.setdefault(f"{kind} {self.learn.epoch}", []).extend(rows)


def test_everybody_comes_once_an_epoch(loaders, tmp_path):
    def work(processes):
        rows = Rows()
        train(loaders, processes, cbs=[rows])
        (tmp_path / f"{processes.rank}.json").write_text(json.dumps(rows.seen))

    assert together(work) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert set(first) == {f"{kind} {epoch}" for kind in ("train", "valid") for epoch in range(3)}
    for part, rows in first.items():
        expected = loaders.train.rows if "train" in part else loaders.valid.rows
        assert sorted(rows + second[part]) == sorted(expected.tolist())
        assert len(rows) > 0.4 * len(expected)
    assert first["train 0"] != first["train 1"]


def test_gradients_are_exchanged_once_a_step(loaders, tmp_path):
    def work(processes):
        from torch.nn.parallel import DistributedDataParallel

        exchanged = []
        make = DistributedDataParallel.__init__

        def watched(self, *args, **named):
            make(self, *args, **named)
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

            def hook(state, bucket):
                exchanged.append(bucket.is_last())
                return allreduce_hook(None, bucket)

            self.register_comm_hook(None, hook)

        DistributedDataParallel.__init__ = watched
        train(loaders, processes, accumulate=3, patience=None)
        (tmp_path / f"{processes.rank}.json").write_text(json.dumps(sum(exchanged)))

    assert together(work) == [0, 0]
    steps = 3 * -(-len(loaders.train) // 3)  # 3 epochs of 8 batches: 3 + 3 + 2
    assert json.loads((tmp_path / "0.json").read_text()) == steps == 9


def test_each_process_drops_other_values(loaders, tmp_path):
    def work(processes):
        class Draw(Callback):
            def after_pred(self):
                if self.learn.training and self.learn.train_iter == 4:
                    (tmp_path / str(processes.rank)).write_text(str(float(torch.rand(()))))

        train(loaders, processes, dropout=0.3, cbs=[Draw()])

    assert together(work) == [0, 0]
    assert (tmp_path / "0").read_text() != (tmp_path / "1").read_text()


class Die(Callback):
    "End a process by a signal in the middle of a training."

    order = 200

    def __init__(self, rank, batch, sent=signal.SIGKILL):
        self.rank, self.batch, self.sent = rank, batch, sent

    def after_batch(self):
        if (
            self.learn.training
            and self.learn.dls.train.rank == self.rank
            and self.learn.train_iter == self.batch
        ):
            os.kill(os.getpid(), self.sent)


def test_a_process_that_dies_ends_the_others_with_a_clear_error(loaders, capfd):
    started = time.monotonic()
    assert together(lambda processes: train(loaders, processes, cbs=[Die(1, 10)])) == [2, -signal.SIGKILL]
    assert time.monotonic() - started < 120
    assert (
        "process 0 of 2: expected an answer of all others, found one that does not answer"
        in capfd.readouterr().err
    )


@BOTH
def test_killed_processes_go_on_to_the_same_bits(loaders, tmp_path, sharded):
    how = {"dropout": 0.3, "accumulate": 2}
    whole = both(loaders, tmp_path / "whole", sharded, checkpoints=tmp_path / "a", **how)
    for rank, batch in ((1, 5), (0, 17)):
        stopped = together(
            lambda processes, rank=rank, batch=batch: train(
                loaders, processes, checkpoints=tmp_path / "b", cbs=[Die(rank, batch)], **how
            ),
            sharded=sharded,
        )
        assert stopped[rank] == -signal.SIGKILL and stopped[1 - rank] == 2
    again = both(loaders, tmp_path / "again", sharded, checkpoints=tmp_path / "b", **how)
    for one, other in zip(whole, again, strict=True):
        agree(one, other, 0)
        assert all(torch.equal(one["best"][name], other["best"][name]) for name in one["best"])


def test_a_warning_to_one_process_stops_all_with_a_checkpoint(loaders, tmp_path):
    folder = tmp_path / "checkpoints"
    warned = together(
        lambda processes: train(loaders, processes, checkpoints=folder, cbs=[Die(1, 10, signal.SIGTERM)])
    )
    assert warned == [143, 143]
    # They agree on every eighth batch, the next of which was the first of the validation
    assert Checkpoint(folder).newest()["place"]["train_iter"] == 16


def test_a_checkpoint_of_a_shared_network_loads_in_one_process(loaders, tmp_path):
    shared = both(loaders, tmp_path / "shared", sharded=True, checkpoints=tmp_path / "checkpoints")[0]
    state = Checkpoint(tmp_path / "checkpoints").newest()
    alone = fusion_learner(loaders, SMALL, seed=5)
    assert {k: v.shape for k, v in state["model"].items()} == {
        k: v.shape for k, v in alone.model.state_dict().items()
    }
    take_weights(alone.model, shared["best"])
    torch.testing.assert_close(torch.from_numpy(predict_rows(alone, loaders.valid.rows)), shared["predicted"])
    assert len(state["random"]) == 2
    agree(outcome_of(train(loaders, checkpoints=tmp_path / "checkpoints"), loaders.valid.rows), shared, 2e-4)


def test_what_would_go_wrong_silently_is_refused(loaders):
    two = Processes(0, 2, torch.device("cpu"), sharded=True)
    with pytest.raises(UkbmmError, match="fp16"):
        fusion_learner(loaders, SMALL, amp="fp16", cbs=[Distributed(two)])

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    learn = fusion_learner(loaders, SMALL)
    learn.loss_func = Weighted()
    with pytest.raises(UkbmmError, match="without weights of its own"):
        learn.add_cb(Distributed(two)).distributed.after_create()


STUDY = """\
version: 1
name: hba1c
modalities:
  lifestyle: {kind: phenotype, fields: [31, 21003, 21001], encoder: {dropout: 0.0}}
  snps: {kind: snps, encoder: {dropout: 0.0}}
outcome: {kind: regression, field: 30750, name: HbA1c}
fusion: {kind: concat, dropout: 0.0}
head: {dropout: 0.0}
validation: {kind: kfold, folds: 2, inner: 2}
train: {epochs: 3, networks: 1, batch_size: 64}
baselines: [ridge]
evaluation: {draws: 100}
"""


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    path = tmp_path_factory.mktemp("people") / "people.biobank"
    return synthetic_biobank(path, participants=900, variants=60, seed=0)


def launch(repository: Path, people, folder: Path, *more: str) -> subprocess.Popen:
    "Start a study in two processes, by accelerate."
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(STUDY)
    command = ["-m", "accelerate.commands.launch", "--config_file", repository / "configs/accelerate/cpu-2.yaml",
               "--main_process_port", "0", "-m", "ukbmm", "run", folder / "study.yaml", "--biobank", people.path,
               "--out", folder / "runs", *more]  # fmt: skip
    variables = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(repository),
    }
    return subprocess.Popen([sys.executable, *map(str, command)], env=variables, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def test_accelerate_launches_a_study_that_comes_to_the_same(repository, people, tmp_path):
    process = launch(repository, people, tmp_path)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert said.count("2 processes train copies of one network") == 1
    run = Run.open(tmp_path / "runs" / "hba1c-001")
    assert run.record["processes"] == 2 and run.record["status"] == "finished"
    assert len(list((tmp_path / "runs").iterdir())) == 1  # one writer
    alone = TrainingPipeline(Spec.parse(STUDY), people, tmp_path / "alone").run()
    both = run.predictions()
    assert both["row"].to_list() == alone.predictions()["row"].to_list()
    for name in ("prediction_fusion", "prediction_ridge"):
        np.testing.assert_allclose(both[name], alone.predictions()[name], rtol=1e-3)
    assert alone.record["processes"] == 1 and len(alone.record["seeds"]) == 2


def test_a_killed_process_ends_a_launched_study_and_the_same_command_goes_on(repository, people, tmp_path):
    process = launch(repository, people, tmp_path, "--set", "train.epochs=200", "--set", "train.patience=200")
    checkpoints, started = tmp_path / "runs" / "hba1c-001" / "checkpoints", time.monotonic()
    while not list(checkpoints.rglob("fit-*.pt")):
        assert process.poll() is None and time.monotonic() - started < 300
        time.sleep(0.2)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "RANK" in p.environ()]
    next(p for p in ranks if p.environ()["RANK"] == "1").kill()
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "does not answer any more" in said or "asked to stop" in said
