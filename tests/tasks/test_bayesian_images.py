"""layerwise_prior and rotation_range: parts, probabilities, angles, and what data is used."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64

from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.registry import methods
from metabench.problems.augment import Strengths, affine, rotated, warped
from metabench.tasks.families.images.bayesian_images import BayesianImagesProblem
from metabench.tasks.layerwise_prior import LayerwisePrior
from metabench.tasks.rotation_range import RotationRange, RotationRangeProblem

CPU = torch.device("cpu")
SMALL = {"n_train": 40, "n_test": 30, "batch": 8, "width": 3, "shrink": 1, "dtype": "float64"}


def invented(seed=0):
    """60 and 30 images of 6x6 pixels."""
    gen = torch.Generator().manual_seed(seed)
    return {
        split: (torch.rand(n, 1, 6, 6, generator=gen), torch.arange(n) % 10)
        for split, n in (("train", 60), ("test", 30))
    }


def prior(**settings):
    return BayesianImagesProblem(LayerwisePrior(**(SMALL | settings)), Seeds.of(0), CPU, invented())


def turning(**settings):
    task = RotationRange(**(SMALL | {"samples": 2} | settings))
    return RotationRangeProblem(task, Seeds.of(0), CPU, invented())


def test_what_is_not_cut_off_is_trained_on():
    sizes = {k: len(v["y"]) for k, v in prior().parts.items()}
    assert sizes == {"train": 32, "valid": 8, "test": 30, "selection": 8}
    whole = prior(validation=0.0)
    assert whole.example_count == 40 and whole.parts["valid"] is whole.parts["train"]
    for problem, numbers in ((prior(), (32.0, 8.0)), (whole, (40.0, 0.0))):
        lam, episode = problem.init_outer(), problem.episode("test", 0)
        found = problem.metrics(lam, problem.fresh, episode)
        assert (found["trained_on"], found["validated_on"]) == numbers
    with pytest.raises(ValueError, match=r"validation = 0\.01 of n_train = 40"):
        LayerwisePrior(**(SMALL | {"validation": 0.01}))


def test_without_validation_images_only_methods_that_need_none_apply():
    whole = LayerwisePrior(validation=0.0)
    for name in ("ift", "bilevel", "random"):
        said = why_not(whole, methods.get(name)())
        assert said is not None and "all examples are trained on" in said
        assert why_not(LayerwisePrior(), methods.get(name)()) is None
    for name in ("marglik", "fixed"):
        assert why_not(whole, methods.get(name)()) is None


@pytest.mark.parametrize(("precisions", "names"), [
    ("one", ["log_precision"]),
    ("layer", ["log_precision.layer0", "log_precision.head"]),
    ("weight", [f"log_precision.{a}.{b}" for a in ("layer0", "head") for b in ("weight", "bias")]),
])  # fmt: skip
def test_the_inner_loss_is_minus_the_log_of_likelihood_and_prior(precisions, names):
    problem = prior(precisions=precisions, validation=0.0)
    lam = problem.init_outer()
    assert list(lam) == names == [h.name for h in problem.hypers]
    lam = {k: v + 0.3 * (i + 1) for i, (k, v) in enumerate(lam.items())}
    theta, batch = problem.fresh, problem.take(torch.arange(40))
    p = problem.predict(lam, theta, batch).softmax(1)
    likelihood = sum(math.log(float(p[n, y])) for n, y in enumerate(batch["y"].tolist()))
    penalty = 0.0
    for name, value in theta.items():
        of = {"one": names[0], "layer": f"log_precision.{name.split('.')[0]}"}
        log = lam[of.get(precisions, f"log_precision.{name}")]
        penalty += float((log.exp() * value.square()).sum())
    expected = (0.5 * penalty - likelihood) / 40
    assert float(problem.inner_loss(lam, theta, batch)) == pytest.approx(expected, abs=1e-12)


def test_rotated_images_are_those_of_the_library():
    x = torch.rand(4, 1, 7, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
    degrees = torch.tensor([0.0, 20.0, -65.0, 90.0], dtype=F64)
    zero = torch.zeros_like(degrees)
    known = warped(x, affine(Strengths(degrees, *[zero] * 5)))
    found = rotated(x, degrees)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0], x[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[3, 0], torch.rot90(x[3, 0]), rtol=0, atol=1e-12)


def test_predictions_are_means_over_turned_copies():
    problem = turning(samples=3)
    lam = problem.init_outer() | {"rotation": torch.tensor(0.25, dtype=F64)}
    batch = problem.take(torch.tensor([3, 5]))
    assert batch["way"].shape == (2, 3) and bool((batch["way"].diff(dim=1) > 0).all())
    assert float(batch["way"].abs().max()) <= 1
    found = problem.predict(lam, problem.fresh, batch)
    each = [
        problem.model.logits(problem.fresh, rotated(batch["x"], 45 * batch["way"][:, s]))
        for s in range(3)
    ]
    torch.testing.assert_close(found, sum(each) / 3)


def test_an_image_has_the_same_angles_whoever_stands_beside_it():
    problem = turning()
    few, all_ = problem.take(torch.tensor([7, 2])), problem.take(torch.arange(32))
    assert torch.equal(few["way"], all_["way"][[7, 2]])
    drawn = [problem.take(torch.tensor([7]), torch.Generator().manual_seed(i)) for i in range(2)]
    assert not torch.equal(drawn[0]["way"], drawn[1]["way"])


def test_the_law_turns_every_image():
    upright, turned = turning(law_rotation=0.0), turning(law_rotation=60.0)
    torch.testing.assert_close(upright.parts["test"], prior().parts["test"])
    for split, part in upright.parts.items():
        other = turned.parts[split]["x"]
        assert not any(torch.allclose(a, b) for a, b in zip(part["x"], other, strict=True))
    lam = turned.init_outer()
    found = turned.metrics(lam, turned.fresh, turned.episode("test", 0))
    assert found["rotation"] == pytest.approx(5.0) and found["rotation_gap"] == pytest.approx(55.0)


def test_inner_batches_are_addressed():
    problem = turning()
    episode = problem.episode("train", 4)
    one, again, other = episode.batch(3), problem.episode("train", 4).batch(3), episode.batch(2)
    assert len(one["y"]) == 8 and all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["x"], other["x"])


def test_validation_images_are_turned_anew_for_every_outer_step():
    """With the same angles always, a range of 0 can be a trap: their mean slope there is not 0."""
    problem = turning()
    one, again, other = (problem.episode("train", i).outer for i in (0, 0, 1))
    assert torch.equal(one["x"], other["x"]) and torch.equal(one["way"], again["way"])
    assert not torch.equal(one["way"], other["way"])
    test = [problem.episode("test", i).outer["way"] for i in (0, 1)]
    assert torch.equal(*test)
