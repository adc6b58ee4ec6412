"""Episodes under the formulations "init" and "representation", on the embedded glyphs."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench.contract.method import Context, State
from metabench.contract.problem import Episode
from metabench.contract.seeds import Seeds, generator
from metabench.core import settings as config
from metabench.core.capabilities import why_not
from metabench.core.cell import Budget
from metabench.core.errors import SettingError, UnknownName
from metabench.core.registry import methods, solvers, tasks

class_images = importlib.import_module("metabench.tasks.families.images.class_images")
few_shot_problem = importlib.import_module("metabench.tasks.families.episodes.few_shot_problem")
Classes = importlib.import_module("metabench.tasks.families.images.class_images").Classes
CPU = torch.device("cpu")
SMALL = {"filters": 4, "meta_batch": 3, "dtype": "float64"}


def build(**own):
    return tasks.get("glyphs")(**{**SMALL, **own}).build(Seeds.of(0), CPU)


def context(problem, **own):
    return Context(
        problem, solvers.get("sgd")(), Seeds.of(0), problem.task.offers, budget=Budget(5), **own
    )


def fingerprint(image):
    return image.numpy().tobytes()


def method(name, **own):
    return config.build(methods.get(name), own, name)


@settings(max_examples=25, deadline=None)
@given(
    ways=st.integers(2, 20),
    shots=st.integers(1, 6),
    queries=st.integers(1, 8),
    index=st.integers(0, 10**6),
    split=st.sampled_from(["train", "valid", "test"]),
)
def test_an_episode_is_what_its_settings_say(ways, shots, queries, index, split):
    problem = build(ways=ways, shots=shots, queries=queries)
    episode = problem.episode(split, index)
    support, query = episode.batch(0), episode.outer
    assert support["x"].shape == (ways * shots, 1, 28, 28)
    assert query["x"].shape == (ways * queries, 1, 28, 28)
    assert torch.equal(support["y"].bincount(), torch.full((ways,), shots))
    assert torch.equal(query["y"].bincount(), torch.full((ways,), queries))
    assert float(support["x"].min()) >= 0 and float(support["x"].max()) <= 1
    seen = {fingerprint(x) for x in support["x"]}
    assert not seen & {fingerprint(x) for x in query["x"]}, "a query was trained on"
    again = problem.episode(split, index)
    assert torch.equal(query["x"], again.outer["x"])


def test_other_indices_splits_and_seeds_give_other_episodes():
    problem = build()
    other = tasks.get("glyphs")(**SMALL).build(Seeds.of(1), CPU)
    images = [
        problem.episode("train", 0),
        problem.episode("train", 1),
        problem.episode("test", 0),
        other.episode("train", 0),
    ]
    flat = [fingerprint(e.outer["x"]) for e in images]
    assert len(set(flat)) == len(flat)


def test_minibatches_pass_over_the_support_set_and_can_be_asked_for_again():
    problem = build(train_shots=10, inner_batch=10)
    episode = problem.episode("train", 0)
    a_pass = torch.cat([episode.batch(t)["y"] for t in range(5)])
    assert torch.equal(a_pass.bincount(), torch.full((5,), 10))
    assert torch.equal(episode.batch(7)["x"], episode.batch(7)["x"])
    assert not torch.equal(episode.batch(0)["x"], episode.batch(5)["x"])
    assert len(problem.episode("valid", 0).batch(0)["y"]) == 5, "evaluation uses the shots alone"


def test_a_minibatch_may_end_one_pass_and_begin_the_next():
    problem = build(
        train_shots=2, inner_batch=4, dtype="float32"
    )  # 10 images, 5 batches a 2 passes
    episode = problem.episode("train", 3)
    x = torch.cat([episode.batch(t)["x"] for t in range(5)])
    whole = build(train_shots=2, dtype="float32").episode("train", 3).batch(0)["x"]
    for a_pass in (x[:10], x[10:]):
        assert sorted(map(fingerprint, a_pass)) == sorted(map(fingerprint, whole))


def test_a_minibatch_larger_than_the_support_set_is_the_support_set():
    batch = build(inner_batch=50).episode("train", 0).batch(2)
    assert sorted(batch["y"].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {"shots": 15, "queries": 6},
            "shots = 15 and queries = 6 need 21 images a class; there are 20",
        ),
        ({"train_shots": 19, "queries": 5}, "train_shots = 19 and queries = 5 need 24 images"),
        ({"ways": 1}, "task glyphs: setting ways cannot be 1"),
        ({"inner_batch": 0}, "setting inner_batch cannot be 0"),
        ({"unit_features": True}, 'unit_features = true needs formulation = "representation"'),
        ({"formulation": "both"}, "setting formulation cannot be 'both'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_built(own, said):
    with pytest.raises(SettingError, match=said):
        config.build(tasks.get("glyphs"), own, "task glyphs")


def test_more_ways_than_classes_are_refused():
    with pytest.raises(SettingError, match=r"ways = 60, but the valid split has \d+ classes"):
        build(ways=60)


def test_a_split_that_is_not_there_is_refused():
    with pytest.raises(UnknownName, match="no split 'tests'; near: test"):
        build().episode("tests", 0)


def test_an_episode_has_different_classes_and_drawings():
    problem = build(ways=20, shots=5, queries=15)
    for index in range(20):
        episode = problem.episode("valid", index)
        prints = [fingerprint(x) for x in torch.cat([episode.batch(0)["x"], episode.outer["x"]])]
        assert len(set(prints)) == 20 * 20


def test_every_class_and_every_drawing_is_drawn_about_equally_often():
    images = torch.arange(12 * 6, dtype=torch.uint8).view(12, 6, 1, 1, 1).expand(12, 6, 1, 28, 28)
    classes = class_images.Classes(images)
    task = tasks.get("glyphs")(shots=1, queries=2, filters=4)
    problem = few_shot_problem.FewShotProblem(
        task, dict.fromkeys(("train",), classes), Seeds.of(0), CPU
    )
    seen = torch.zeros(72)
    for index in range(1200):
        episode = problem.episode("train", index)
        for batch in (episode.batch(0), episode.outer):
            seen += (batch["x"][:, 0, 0, 0] * 255).round().long().bincount(minlength=72)
    expected = 1200 * 15 / 72
    assert float(((seen - expected).square() / expected).sum()) < 110  # 71 degrees of freedom


def test_both_formulations_and_every_method_see_the_same_episodes():
    one, other = build(), build(formulation="representation", filters=8, meta_batch=1)
    for split in ("train", "test"):
        assert torch.equal(one.episode(split, 5).outer["x"], other.episode(split, 5).outer["x"])


@pytest.mark.parametrize(
    ("formulation", "name", "own"),
    [
        ("init", "maml", {"inner_steps": 2}),
        ("init", "maml", {"inner_steps": 2, "order": "first"}),
        ("init", "maml", {"inner_steps": 2, "anil": True}),
        ("representation", "bilevel", {"inner_steps": 3}),
    ],
)
def test_looped_threaded_and_batched_episodes_agree(formulation, name, own):
    problem = build(formulation=formulation)
    chosen = method(name, **own)
    lam = problem.init_outer()
    episodes = [problem.episode("train", i) for i in range(3)]
    runs = []
    for how in ({}, {"workers": 2}, {"engine": "vmap"}):
        ctx = context(problem, **how)
        runs.append(
            ctx.over_episodes(lambda e, ctx=ctx: chosen.hypergradient(ctx, lam, None, e), episodes)
        )
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            for key, value in one.grad.items():
                torch.testing.assert_close(value, two.grad[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("formulation", "name", "own"),
    [
        ("representation", "bilevel", {"inner_steps": 4}),
        ("representation", "bilevel", {"inner_steps": 4, "truncate": 2}),
        ("init", "maml", {"inner_steps": 3, "anil": True}),
        ("init", "maml", {"inner_steps": 3, "anil": True, "order": "first"}),
    ],
)
def test_preparing_an_episode_changes_no_hypergradient(formulation, name, own, monkeypatch):
    problem = build(formulation=formulation)
    chosen, lam, episode = method(name, **own), problem.init_outer(), problem.episode("train", 0)
    fast = chosen.hypergradient(context(problem), lam, None, episode)
    prepared = problem.prepare(lam, episode, chosen.only(context(problem)))
    assert "features" in prepared.outer
    monkeypatch.setattr(type(problem), "prepare", lambda self, lam, episode, only=None: episode)
    plain = chosen.hypergradient(context(problem), lam, None, episode)
    for key, value in plain.grad.items():
        torch.testing.assert_close(fast.grad[key], value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("formulation", "name", "own"),
    [
        ("representation", "bilevel", {"inner_steps": 4}),
        ("init", "maml", {"inner_steps": 3, "anil": True}),
    ],
)
def test_adaptation_leaves_the_query_set_alone(formulation, name, own, monkeypatch):
    problem = build(formulation=formulation)
    chosen, episode = method(name, **own), problem.episode("test", 0)
    ctx = context(problem)
    state, seen = chosen.init(ctx), []
    embed = problem.embed
    monkeypatch.setattr(problem, "embed", lambda lam, b: seen.append(len(b["y"])) or embed(lam, b))
    theta = chosen.adapt(ctx, state, episode)
    assert seen == [len(episode.batch(0)["y"])]
    inner = problem.prepare_inner

    def whole(lam, e, only=None):
        return replace(inner(lam, e, only), outer=problem.featured(lam, e.outer))

    monkeypatch.setattr(problem, "prepare_inner", whole)
    for key, value in chosen.adapt(ctx, state, episode).items():
        assert torch.equal(value, theta[key])
    assert seen[1:] == [len(episode.batch(0)["y"]), len(episode.outer["y"])]


def test_nothing_is_prepared_where_the_body_moves():
    problem = build()
    episode = problem.episode("train", 0)
    assert problem.prepare(problem.init_outer(), episode) is episode


def test_representation_sees_lam_through_features_alone():
    problem = build(formulation="representation")
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    assert not set(lam) & set(theta)
    assert all(not v.any() for v in theta.values())
    assert float(problem.inner_loss(lam, theta, episode.batch(0))) == pytest.approx(1.6094379124)


def test_inapplicable_crossings_say_why():
    init, body = (tasks.get("glyphs")(formulation=f) for f in ("init", "representation"))
    assert "representation" in why_not(body, method("maml"))
    assert why_not(body, method("bilevel")) is None
    assert why_not(init, method("maml", anil=True)) is None
    assert why_not(init, method("random")) == (
        "lam is the weights of a network: neither few scalars nor bounds to search in"
    )


def test_nearest_neighbour_by_hand():
    x = torch.tensor([[0.0], [1.0]]).view(2, 1, 1, 1)
    query = torch.tensor([[0.1], [0.4], [0.9]]).view(3, 1, 1, 1)
    episode = Episode(
        {"x": x, "y": torch.tensor([0, 1])}, {"x": query, "y": torch.tensor([0, 1, 1])}
    )
    assert class_images.nearest_neighbour(episode) == pytest.approx(2 / 3)


def test_metrics_are_those_of_the_queries():
    problem = build()
    lam, episode = problem.init_outer(), problem.episode("test", 0)
    found = problem.metrics(lam, problem.init_inner(lam, episode), episode)
    assert set(found) == {"accuracy", "loss", "nearest_neighbour"}
    assert found["loss"] == pytest.approx(float(problem.outer_loss(lam, dict(lam), episode.outer)))


def test_features_of_unit_length_are_what_both_losses_see():
    own = {"formulation": "representation", "downsample": "pool", "filters": 6}
    plain, unit = build(**own), build(**own, unit_features=True)
    lam, episode = plain.init_outer(), plain.episode("train", 0)
    z = plain.embed(lam, episode.outer)
    expected = z / z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit.embed(lam, episode.outer), expected, rtol=1e-9, atol=1e-9)
    theta = unit.init_inner(lam, episode)
    theta = {k: v + torch.linspace(-1, 1, v.numel()).view_as(v).to(v) for k, v in theta.items()}
    logits = expected @ theta["head.weight"].T + theta["head.bias"]
    loss = torch.nn.functional.cross_entropy(logits, episode.outer["y"])
    ready = unit.prepare(lam, episode)
    for batch in (episode.outer, ready.outer):
        torch.testing.assert_close(unit.outer_loss(lam, theta, batch), loss)
        torch.testing.assert_close(unit.logits(lam, theta, batch), logits)
    assert "unit_embedding" in unit.task.offers and "unit_embedding" not in plain.task.offers


def test_features_of_zero_have_second_derivatives():
    unit = build(formulation="representation", downsample="pool", unit_features=True)
    lam, episode = unit.init_outer(), unit.episode("train", 0)
    dead = {k: torch.zeros_like(v) for k, v in lam.items()}
    z, back = torch.func.vjp(lambda p: unit.embed(p, episode.outer), dead)
    assert not z.any() and all(
        bool(v.isfinite().all()) for v in back(torch.ones_like(z))[0].values()
    )


@pytest.mark.parametrize("own", [
    {}, {"train_shots": 4, "inner_batch": 3, "test_inner_batch": 2},
    {"formulation": "representation", "train_ways": 7},
])  # fmt: skip
@pytest.mark.parametrize("split", ["train", "valid"])
def test_several_episodes_at_once_are_the_same_ones(own, split):
    problem = build(**own)
    for index, one in zip((4, 0, 9), problem.episodes(split, [4, 0, 9]), strict=True):
        alone = problem.episode(split, index)
        assert one.index == alone.index == index
        pairs = [(one.batch(t), alone.batch(t)) for t in (0, 3)] + [(one.outer, alone.outer)]
        for a, b in pairs:
            assert list(a) == list(b)
            assert all(torch.equal(a[k], b[k]) and a[k].is_contiguous() for k in a)


@pytest.mark.parametrize("rotations", [1, 4])
def test_episodes_have_the_images_that_their_own_generators_name(rotations):
    problem = build(ways=6, shots=2, queries=1)
    images = problem.splits["train"].images
    problem.splits["train"] = Classes(images, rotations)
    for index, episode in zip((5, 2), problem.episodes("train", [5, 2]), strict=True):
        gen = generator(problem.seeds.batches, "train", index)
        classes = torch.randperm(rotations * len(images), generator=gen)[:6].tolist()
        keys = torch.rand((6, images.shape[1]), generator=gen, dtype=torch.float32)
        for way, (cls, key) in enumerate(zip(classes, keys, strict=True)):
            drawings = images[cls % len(images), key.argsort()[:3]]
            wanted = torch.rot90(drawings, cls // len(images), (-2, -1)).double() / 255
            found = [*episode.batch(0)["x"][2 * way : 2 * way + 2], episode.outer["x"][way]]
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        if rotations == 4:
            assert len({cls // len(images) for cls in classes}) > 1, "several turns are looked at"


@pytest.mark.parametrize(
    ("own", "at_once"),
    [
        ({}, 31),  # 5 images of 14 * 14 * 64 floats: 8 MB hold 31
        ({"shots": 5}, 6),
        ({"shots": 5, "filters": 16}, 25),
        ({"shots": 5, "filters": 4}, 32),
        ({"shots": 5, "dtype": "float64"}, 1),  # 3 would fit: fewer than pay
        ({"shots": 5, "test_inner_batch": 5}, 31),
        ({"train_shots": 10, "queries": 10}, 31),
        ({"downsample": "pool"}, 1),
    ],
)
def test_evaluation_at_once_follows_from_the_images_of_an_inner_step_of_the_test(own, at_once):
    given = {"ways": 5, "shots": 1, "queries": 5, "filters": 64, "dtype": "float32", **own}
    problem = build(**given)
    assert problem.adapted_at_once == at_once


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_inner_steps_that_nothing_differentiates_take_the_networks_gradient(
    downsample, monkeypatch
):
    problem = build(downsample=downsample, ways=5)
    episodes = [problem.episode("test", i) for i in range(3)]
    lam, asked = problem.init_outer(), []
    gradient = problem.net.gradient

    def counted(*given):
        asked.append(given)
        return gradient(*given)

    def thetas(at_once):
        ctx = context(problem)
        one = method("maml", inner_steps=3)

        def adapt(e):
            return one.adapt(ctx, State(lam), e)

        if at_once:
            return ctx.at_once(adapt, episodes, steps=3)
        return [adapt(e) for e in episodes]

    ways = [False] if downsample == "pool" else [False, True]
    monkeypatch.setattr(problem, "inner_gradient", lambda *_: None)
    want = [thetas(w) for w in ways]
    monkeypatch.undo()
    monkeypatch.setattr(problem.net, "gradient", counted)
    for w, expected in zip(ways, want, strict=True):
        torch.testing.assert_close(thetas(w), expected, rtol=1e-10, atol=1e-10)
    assert len(asked) == 9 + 3 * (len(ways) - 1)


@pytest.mark.parametrize(
    "own",
    [{"formulation": "prior"}, {"formulation": "representation"}, {"formulation": "context"}],
)
def test_the_networks_gradient_is_no_other_losses(own):
    problem = build(**own)
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    assert problem.inner_gradient(lam, theta, episode.batch(0)) is None
