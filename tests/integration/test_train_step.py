"""The program that checks the newest fastai does its work with this one."""

from train_step import import_all, train_step


def test_every_module_can_be_imported_alone():
    assert "ukbmm.workflow.pipeline" in import_all()


def test_one_epoch_lowers_the_validation_loss(tmp_path):
    before, after = train_step(tmp_path)
    assert after < before
