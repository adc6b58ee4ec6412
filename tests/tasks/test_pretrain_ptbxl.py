"""PTB-XL in its own layout, written small: the reader, and pre-training on it."""

import importlib
import math

import numpy as np
import pytest
import torch
from oracles import F64, context, differences, hypergradient

from metabench.conformance.kit import task_checks
from metabench.contract import autodiff
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.errors import DataMissing, MetabenchError, SettingError
from metabench.core.registry import methods, tasks
from metabench.datasets import fetch, locate, verify

ptbxl = importlib.import_module("metabench.tasks.data.ptbxl")
finetune = importlib.import_module("metabench.tasks.families.pretraining.two_stage")
curves = importlib.import_module("metabench.tasks.families.auroc")

RECORDS = 60
NAMES = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
STATEMENTS = {
    "NORM": "NORM", "IMI": "MI", "ASMI": "MI", "NDT": "STTC", "CLBBB": "CD", "LVH": "HYP",
    "SR": None, "AFIB": None,
}  # fmt: skip
TINY = {
    "window": 32, "batch": 4, "n_tune": 8, "n_valid": 6, "width": 4, "stages": 2, "projection": 4,
    "kernel": 5, "tune_steps": 2, "final_steps": 3, "dtype": "float64",
}  # fmt: skip


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def codes(i):
    """The statements of record i: none, one of a class, two of a class, several classes."""
    names = list(STATEMENTS)
    if i % 12 == 0:
        return {"SR": 0.0}
    chosen = {names[i % 6]: 100.0, "SR": 0.0}
    return chosen | ({"ASMI": 50.0, "LVH": 0.0} if i % 5 == 0 else {})


def write(folder):
    """The files of PTB-XL for a few records; samples int16 [n, 12, 1000]."""
    gen = np.random.default_rng(0)
    signal = gen.integers(-2000, 2000, (RECORDS, 12, 1000), dtype=np.int16)
    folder.mkdir()
    lines = ["ecg_id,patient_id,scp_codes,strat_fold,filename_lr,filename_hr"]
    for i in range(RECORDS):
        number = i + 1
        name = f"{number:05d}_lr"
        at = folder / "records100" / f"{number // 1000 * 1000:05d}"
        at.mkdir(parents=True, exist_ok=True)
        header = [f"{name} 12 100 1000"]
        for lead, samples in zip(NAMES, signal[i], strict=True):
            scale = "500.0(100)/mV" if lead == "V6" else "1000.0(0)/mV"
            total = int(samples.sum(dtype=np.int64)) % 2**16
            header.append(f"{name}.dat 16 {scale} 16 0 {samples[0]} {total} 0 {lead}")
        (at / f"{name}.hea").write_text("\n".join(header) + "\n")
        (at / f"{name}.dat").write_bytes(signal[i].T.astype("<i2").tobytes())
        where = f"records100/{at.name}/{name}"
        lines.append(f'{number},{15000 + i}.0,"{codes(i)}",{i % 10 + 1},{where},')
    (folder / "ptbxl_database.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{k},some words,{'' if v is None else 1.0},{v or ''}" for k, v in STATEMENTS.items()]
    head = ",description,diagnostic,diagnostic_class"
    (folder / "scp_statements.csv").write_text("\n".join([head, *rows]) + "\n")
    return signal


@pytest.fixture
def signal(tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ptbxl, "VERSIONS", {RECORDS: "small"})
    return write(tmp_path / "ptbxl")


def hearts(seed=0, **set_):
    task = tasks.get("pretrain_ptbxl")(**{**TINY, **set_})
    return task.build(Seeds.of(seed), torch.device("cpu"))


def test_records_are_read_in_millivolts_with_their_diagnoses(signal):
    found = ptbxl.load()
    volts = torch.from_numpy(signal).double() / 1000
    volts[:, 11] = (torch.from_numpy(signal[:, 11]).double() - 100) / 500
    every = torch.arange(RECORDS)
    close(found.millivolts(every).double(), volts, 1e-6)
    for i in range(RECORDS):
        expected = {STATEMENTS[code] for code in codes(i)} - {None}
        assert {ptbxl.CLASSES[k] for k in found.label[i].nonzero()[:, 0]} == expected
    assert not found.label[0].any() and found.label.sum(1).max() > 1
    assert torch.equal(found.fold, every % 10 + 1)
    train = volts[found.fold < 10]
    assert found.mean == pytest.approx(float(train.mean()), abs=1e-6)
    assert found.deviation == pytest.approx(float(train.std(correction=0)), rel=1e-6)
    x = found.windows(every, 1024)
    assert x.shape == (RECORDS, 12, 1024) and not x[..., 1000:].any()
    close(x[..., :1000].double(), (volts - found.mean) / found.deviation, 1e-5)
    assert torch.equal(found.windows(every, 32), x[..., :32])


def test_the_zip_files_own_folder_is_found_too(signal, tmp_path):
    long = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"
    (tmp_path / "ptbxl").rename(tmp_path / long)
    assert locate.locate("ptbxl").layout.name == "1.0.3"
    assert len(ptbxl.load().fold) == RECORDS


def spoil(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def damage(path):
    held = bytearray(path.read_bytes())
    held[100] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda at: damage(at / "records100/00000/00007_lr.dat"), "signal 2 is not what its heade"),
        (
            lambda at: (at / "records100/00000/00007_lr.dat").write_bytes(b"\0" * 23998),
            "23998 bytes instead of 24000",
        ),
        (lambda at: spoil(at / "records100/00000/00003_lr.hea", " 16 ", " 212 "), "no signal in f"),
        (lambda at: spoil(at / "records100/00000/00003_lr.hea", "/mV", "/uV"), "no signal in form"),
        (
            lambda at: spoil(at / "records100/00000/00003_lr.hea", "12 100", "12 500"),
            "'00003_lr 12 500 1000', not under 'NAME 12 100 1000'",
        ),
        (lambda at: (at / "records100/00000/00009_lr.hea").unlink(), "00009_lr: cannot be read"),
        (lambda at: spoil(at / "scp_statements.csv", ",HYP", ",HYPE"), "LVH is of class 'HYPE'"),
        (lambda at: spoil(at / "ptbxl_database.csv", "strat_fold", "fold"), "no column strat_fold"),
        (lambda at: spoil(at / "ptbxl_database.csv", "{'SR'", "{SR"), "record records100/00000/0"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_something_else_is_refused(signal, tmp_path, harm, reason):
    harm(tmp_path / "ptbxl")
    with pytest.raises(MetabenchError, match=reason):
        ptbxl.load()


def test_counts_are_told_by_version(signal, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ptbxl, "VERSIONS", {21799: "1.0.3"})
        with pytest.raises(MetabenchError, match=r"has 60 records, none of .*21799 \(1\.0\.3\)"):
            ptbxl.load()
    verdicts = {v.path.name: v for v in verify.verify("ptbxl")}
    assert verdicts["ptbxl_database.csv"].wrong == ""
    assert verdicts["*_lr.dat"].wrong == "60 files instead of 21,799 or 21,801 or 21,837"
    assert "SHA256SUMS" in verdicts["*_lr.dat"].note


def test_what_is_missing_comes_with_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    with pytest.raises(DataMissing) as missing:
        tasks.get("pretrain_ptbxl")().build(Seeds.of(0), torch.device("cpu"))
    assert missing.value.repair.startswith("wget -r ")
    assert "physionet.org/files/ptb-xl/1.0.3/" in missing.value.repair
    assert "set METABENCH_DATA to the folder that holds ptbxl" in missing.value.repair
    with pytest.raises(MetabenchError, match="metabench does not fetch ptbxl; by hand: wget"):
        fetch.fetch("ptbxl")


@pytest.mark.parametrize("split", ["folds", "pooled"])
def test_labels_come_from_their_folds_and_the_test_from_the_last(signal, split):
    problem = hearts(split=split)
    held = problem.hearts
    windows = held.windows(torch.arange(RECORDS), 32).double()

    def numbers(part):
        rows = [(windows == x).flatten(1).all(1).nonzero() for x in part["x"]]
        return [int(row) for row in rows]

    (tune, valid), (every, test) = problem.roles["train"], problem.roles["test"]
    found = {k: numbers(part) for k, part in (("tune", tune), ("valid", valid), ("test", test))}
    folds = {k: set(held.fold[rows].tolist()) for k, rows in found.items()}
    assert folds["test"] == {10} and len(found["test"]) == 6
    assert len(found["tune"]) == 8 and len(found["valid"]) == 6
    assert not set(found["tune"]) & set(found["valid"])
    unlabelled = set(held.fold[problem.unlabelled].tolist())
    if split == "folds":
        assert folds["valid"] == {9} and 9 not in folds["tune"] | unlabelled
    else:
        assert unlabelled == set(range(1, 10)) and folds["valid"] != {9}
    assert torch.equal(tune["y"], held.label[found["tune"]].double())
    assert torch.equal(every["y"], torch.cat([tune["y"], valid["y"]]))
    assert len(hearts(n_test=3).roles["test"][1]["y"]) == 3
    with pytest.raises(SettingError, match=r"n_valid is 7; with split 'folds' there are 6 records"):
        hearts(n_valid=7)
    with pytest.raises(ValueError, match="kernel is 4: it must be odd"):
        tasks.get("pretrain_ptbxl")(kernel=4)


def test_a_crop_is_one_stretch_of_a_lead_up_to_half(signal):
    problem = hearts(batch=64, window=40)
    batch, lam = problem.episode("train", 0).batch(0), problem.init_outer()
    keep = batch["keep_one"]
    assert keep.shape == (64, 12, 40) and not torch.equal(keep, batch["keep_two"])
    gone = 1 - keep.flatten(0, 1)
    assert gone.sum(1).max() <= 20 and 4 < float(gone.sum(1).mean()) < 10
    starts = (gone.diff(dim=1, prepend=torch.zeros(len(gone), 1, dtype=F64)) > 0).sum(1)
    assert starts.max() == 1
    assert (gone[:, 0] > 0).any() and (gone[:, -1] > 0).any()
    view = problem.view(lam, batch, "one")
    assert not view[keep == 0].any() and (view[keep == 1] != 0).all()
    plain = hearts(crop=False).episode("train", 0).batch(0)
    assert set(plain) == {"x", "warp_one", "warp_two", "jitter_one", "jitter_two"}


# --- fine-tuning on yes and no -------------------------------------------------------------------


def test_the_loss_of_several_labels_by_hand(signal):
    problem = hearts()
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=gen, dtype=F64)
    y = (torch.rand(4, 5, generator=gen) < 0.5).double()
    y[1, 2] = y[3, 0] = math.nan
    total, n = 0.0, 0
    for row, labels in zip(logits.tolist(), y.tolist(), strict=True):
        for z, label in zip(row, labels, strict=True):
            if not math.isnan(label):
                total, n = total + math.log1p(math.exp(-z if label else z)), n + 1
    assert float(problem.head_loss(logits, y)) == pytest.approx(total / n, abs=1e-12)


def test_area_under_the_curve_of_several_labels():
    gen = torch.Generator().manual_seed(0)
    scores = torch.randn(30, 4, generator=gen)
    labels = (torch.rand(30, 4, generator=gen) < 0.4).double()
    labels[:, 3] = 0.0  # no positive: no curve
    labels[:9, 1] = math.nan
    expected = [
        curves.auroc(scores[:, 0], labels[:, 0] > 0),
        curves.auroc(scores[9:, 1], labels[9:, 1] > 0),
        curves.auroc(scores[:, 2], labels[:, 2] > 0),
    ]
    assert curves.multilabel_auroc(scores, labels) == pytest.approx(sum(expected) / 3, abs=1e-12)
    with pytest.raises(ValueError, match="all labels are of one class"):
        curves.multilabel_auroc(scores, labels * 0)


@pytest.mark.parametrize("final", ["linear", "full"])
def test_a_final_batch_of_all_is_the_whole_and_smaller_ones_are_others(signal, final):
    ends = {}
    for size in (None, 14, 5):
        problem = hearts(final=final, final_batch=size)
        episode = problem.episode("test", 0)
        theta = problem.init_inner({}, episode)
        ends[size] = problem.finally_tuned(theta, episode.outer)
    for k, v in ends[None].items():
        close(ends[14][k], v)
    assert not torch.allclose(ends[5]["head.weight"], ends[None]["head.weight"])
    adam = hearts(final=final, final_rule="adam", tune_rule="sgd")
    end = adam.finally_tuned(theta, episode.outer)["head.weight"]
    assert not torch.allclose(end, ends[None]["head.weight"])


def test_every_example_once_in_a_pass():
    drawn = finetune.rows(7, 3, torch.Generator().manual_seed(0))
    one, two = (torch.cat([next(drawn) for _ in range(3)]).tolist() for _ in range(2))
    assert sorted(one) == sorted(two) == list(range(7)) and one != two


# --- the problem as a whole ----------------------------------------------------------------------


@pytest.mark.parametrize("set_", [{}, {"head": "cotrained", "transfer": "full"}])
def test_the_hypergradient_of_the_warp_against_differences(signal, set_):
    small = {**TINY, "carried": False, "first_scale": 0.05, "batch": 3, "crop": True, **set_}
    ctx = context(tasks.get("pretrain_ptbxl")(**small))
    problem, lr = ctx.problem, 0.1
    episode, lam = problem.episode("train", 0), problem.init_outer()
    theta = problem.init_inner(lam, episode)

    def f(lam):
        g = autodiff.grad(lambda t: problem.inner_loss(lam, t, episode.batch(0)), theta)[1]
        return problem.outer_loss(lam, autodiff.axpy(-lr, g, theta), episode.outer)

    found = hypergradient(ctx, "bilevel", lam=lam, inner_steps=1, inner_lr=lr)
    expected = differences(f, lam, 1e-7)
    for k in lam:
        assert found[k].any()
        close(found[k], expected[k], 1e-5)


@pytest.mark.parametrize(
    "set_",
    [
        {},
        {"strength": "network", "dtype": "float32", "split": "pooled", "final_batch": 4},
        pytest.param(
            {"head": "warm", "carried": False, "crop": False, "dtype": "float32"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_hearts_keep_the_contract(signal, set_):
    some = ("fixed", "ift", "bilevel", methods.get("random")(inner_steps=5))
    some = some if set_.get("strength") != "network" else some[:3]
    for _, check in task_checks(tasks.get("pretrain_ptbxl")(**{**TINY, **set_}), some):
        check()


def test_a_network_of_strengths_cannot_be_searched():
    task = tasks.get("pretrain_ptbxl")
    reason = why_not(task(strength="network"), methods.get("random")())
    assert "every weight of the network" in reason
