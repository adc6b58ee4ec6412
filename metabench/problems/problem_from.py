"""A task from a module and data: :func:`problem_from`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from metabench.contract.problem import Hyper, Params
from metabench.contract.seeds import Seeds
from metabench.core import registry, settings
from metabench.core.errors import SettingError, UnknownName
from metabench.core.text import listed
from metabench.problems import judged, network
from metabench.problems.data import Drawn, Inner, Inners, Pair, inners, pair, same_kind
from metabench.problems.fingerprint import fingerprint
from metabench.problems.given import Found, Given
from metabench.problems.learnables import (
    Decays,
    Function,
    Learnable,
    Model,
    Own,
    Strengths,
    Weights,
    adjusted,
    names_of,
)
from metabench.problems.network import Loss, Network
from metabench.problems.tasks import Initialisation, OwnProblem, Supervised

INITIALISATION = "initialisation"
LEARNED = ("weight_decays", "example_weights", "augmentation", INITIALISATION)
"""What can be learned, by name."""
CALLS = 20
"""How often a function of the user's is called again to see whether it draws."""
FORM = 1
"""Part of every fingerprint; raised when a change alters what a problem made here means."""

Learn = str | Function | Sequence[str | Function]


def problem_from(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    valid: Any,
    *,
    test: Any = None,
    selection: Any = None,
    learn: Learn = "weight_decays",
    decays: Literal["one", "tensor", "weight"] = "tensor",
    strengths: Literal["rotation", "geometry", "all"] = "all",
    first: Mapping[str, Any] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    loss: Loss | None = None,
    metric: str | Callable[[Tensor, Tensor], Any] | None = None,
    goal: Literal["max", "min"] | None = None,
    batch_size: int | None = None,
    outer_batch_size: int | None = None,
    carried: bool | None = None,
    meta_batch: int | None = None,
    head: str | None = None,
    name: str | None = None,
) -> Any:
    """A task, known under ``name`` from then on, that every method runs on whose needs it offers.

        model = lambda: nn.Linear(20, 3)
        task = problem_from(model, (x, y), (valid_x, valid_y), test=(test_x, test_y))
        api.run(api.suite_of_pairs([task], ["bilevel", "ift"]), budget="smoke")

    ``model``: a function that makes a module, called with the seed of each run; or a module, copied
    as it is now: unless torch was seeded before, it is another one, and so another problem, in
    every process. ``train``, ``valid``, ``test``, ``selection``: pairs (x [n, ...], y [n, ...]),
    Datasets of pairs, or DataLoaders around one. x of floats takes the model's type; y of whole
    numbers is classes.

    ``learn``: one or several of

    - "weight_decays": G has 1/2 sum e^lam theta^2; ``decays`` says for what there is one lam: all
      parameters, each tensor, or each number;
    - "example_weights": G is mean_i sigmoid(lam_i) l_i;
    - "augmentation": the largest ``strengths`` of rotations, shifts, scalings, brightness and
      cutouts of square images [n, channels, side, side];
    - a function (lam, model, x, y) -> losses [n] in the place of the loss in G, with the first lam
      in ``first``; ``model(x)`` predicts, ``model.theta`` has the parameters;
    - "initialisation", alone: lam is where theta starts. ``train``, ``valid`` and ``test`` are then
      lists of inner problems ((x, y), (x, y)), or functions of a torch.Generator that draw one, or
      one data set each.

    ``first``, ``bounds``: first values and (low, high) of parts of lam by name, infinite where
    there is none; bounds of all make a search space. ``loss``: predictions and y to the loss of
    each example [n]; None: cross-entropy for classes, else the squared error. ``metric``: "loss",
    "accuracy", or a function of predictions and y with its ``goal``. ``batch_size``,
    ``outer_batch_size``: examples of an inner step and of an outer one (None: all); ``carried``:
    one training along the run (the default) or a fresh one in every outer step; ``meta_batch``:
    inner problems of an outer step. These four are settings of the task, too. ``head``: the
    submodule that is the last layer, for methods that ask.

    The task's setting ``fingerprint`` is a sha256 of all of it, in the key of every cell. Raises
    SettingError, with the nearest way that works, for what cannot be a problem; UnknownName for a
    name; MetabenchError where another kind of task has the ``name``.
    """
    asked = _asked(learn)
    model = network.copied(model) if isinstance(model, nn.Module) else model
    module = network.made(model, Seeds.of(0).init)
    dtype = network.check_module(module)
    _check_function(model, module)
    data = {"train": train, "valid": valid, "test": test, "selection": selection}
    data = {k: v for k, v in data.items() if v is not None or k in ("train", "valid")}
    several = {"first": dict(first or {}), "bounds": dict(bounds or {})}
    if asked == [INITIALISATION]:
        _refuse_given(several | {"carried": carried, "outer_batch_size": outer_batch_size},
                      "learn='initialisation' has none of it")  # fmt: skip
        given = _initialisation(model, module, dtype, data, (loss, metric, goal), head)
    else:
        _refuse_given({"meta_batch": meta_batch}, "it is for learn='initialisation'")
        given = _supervised(model, module, dtype, data, (loss, metric, goal), head,
                            asked, {"decays": decays, "strengths": strengths}, several)  # fmt: skip
    marks = {what: fingerprint(function=one) for what, one in given.functions.items()}
    given = dataclasses.replace(given, marks=marks)
    mark = fingerprint(
        form=FORM,
        model=model,
        module=module,
        data=given.splits or given.inners,
        learn=asked,
        first=[(part.word, part.first, [_plain(h) for h in part.hypers]) for part in given.learned],
        loss=given.judge.loss,
        metric=(given.judge.metric, given.judge.goal, given.judge.own),
        head=given.head,
    )
    options = {
        "batch_size": batch_size,
        "outer_batch_size": outer_batch_size,
        "carried": carried,
        "meta_batch": meta_batch,
    }
    made_in = sys._getframe(1).f_globals.get("__name__", "__main__")
    return _known(given, mark, name, {k: v for k, v in options.items() if v is not None}, made_in)


def _asked(learn: Any) -> list[Any]:
    """What is to be learned, each once. Raises UnknownName, SettingError."""
    several = [learn] if isinstance(learn, str) or callable(learn) else learn
    if not isinstance(several, Sequence) or not several:
        raise SettingError(
            f"learn cannot be {learn!r}: give one or several of {', '.join(LEARNED)}, or a function"
        )
    for one in several:
        if isinstance(one, str):
            if one not in LEARNED:
                raise UnknownName("thing to learn called", one, LEARNED)
        elif not callable(one):
            raise SettingError(f"learn has {one!r}: give names or a function")
    words = [one if isinstance(one, str) else "a function" for one in several]
    twice = [word for word in words if words.count(word) > 1]
    if twice:
        raise SettingError(f"learn has {twice[0]!r} twice")
    if INITIALISATION in words and len(words) > 1:
        rest = listed([word for word in words if word != INITIALISATION])
        raise SettingError(
            f"learn: 'initialisation' goes alone, not with {rest}: methods that learn a start take "
            "all of lam for it, and implicit ones would give it no gradient"
        )
    return list(several)


def _refuse_given(options: Mapping[str, Any], why: str) -> None:
    for name, value in options.items():
        if value not in (None, {}):
            raise SettingError(f"{name} cannot be {value!r}: {why}")


def _check_function(model: Any, module: nn.Module) -> None:
    """Raise SettingError where a function makes other modules under the same seed."""
    if isinstance(model, nn.Module):
        return
    again = network.made(model, Seeds.of(0).init)
    if fingerprint(module=module) != fingerprint(module=again):
        raise SettingError(
            "model: the function makes two modules under one seed: it may draw from torch's global "
            "generator only, which has the run's seed when it is called"
        )


def _supervised(
    model: Any,
    module: nn.Module,
    dtype: torch.dtype,
    data: Mapping[str, Any],
    judging: tuple[Any, Any, str | None],
    head: str | None,
    asked: Sequence[Any],
    how: Mapping[str, str],
    several: Mapping[str, dict[str, Any]],
) -> Given:
    """Checked, with what is learned."""
    splits = {k: pair(v, dtype, k) for k, v in data.items()}
    same_kind(splits)
    net = Network(module, torch.device("cpu"))
    judge, splits = _judged(net, splits, judging)
    learned = _learned(asked, net, splits["train"], how, several)
    found = _found(net, splits["train"], judge, learned)
    return Given(model, judge, found, dtype, splits, None, tuple(learned),
                 network.head_of(module, head))  # fmt: skip


def _initialisation(
    model: Any,
    module: nn.Module,
    dtype: torch.dtype,
    data: Mapping[str, Any],
    judging: tuple[Any, Any, str | None],
    head: str | None,
) -> Given:
    """Checked: inner problems, or one data set each."""
    if "selection" in data:
        raise SettingError("selection: learn='initialisation' chooses its state on valid")
    net = Network(module, torch.device("cpu"))
    parts, norms = network.head_of(module, head), network.norms_of(module)
    several = {k: inners(v, dtype, k) for k, v in data.items()}
    if all(v is None for v in several.values()):
        splits = {k: pair(v, dtype, k) for k, v in data.items()}
        same_kind(splits)
        judge, splits = _judged(net, splits, judging)
        found = _found(net, splits["train"], judge, [])
        return Given(model, judge, found, dtype, splits, head=parts, batch_norms=norms)
    odd = [k for k, v in several.items() if v is None]
    if odd:
        raise SettingError(
            f"{odd[0]} is one data set, and the others are inner problems: give all in one form"
        )
    every: dict[str, Inners] = {k: v for k, v in several.items() if v is not None}
    shown = {k: v.draw(Seeds.of(0), k, 0) for k, v in every.items()}
    for part in ("support", "query"):
        same_kind({f"{k}, {part}": getattr(one, part) for k, one in shown.items()})
    support, query = shown["train"]
    same_kind({"support": support, "query": query})
    judge, _ = _judged(net, {"train": support, "query": query}, judging)
    every = {k: _shaped(net, v, judge, k) for k, v in every.items()}
    found = _found(net, support, judge, [])
    return Given(model, judge, found, dtype, {}, every, head=parts, batch_norms=norms)


def _judged(
    net: Network, splits: Mapping[str, Pair], judging: tuple[Any, Any, str | None]
) -> tuple[judged.Judge, dict[str, Pair]]:
    """The judge, and splits with targets as it takes them."""
    x, y = splits["train"]
    few = network.check_pure(net, x)
    judge, _ = judged.judge(few, y[: len(few)], *judging)
    return judge, {k: _fitting(few, part, judge, k) for k, part in splits.items()}


def _fitting(few: Tensor, part: Pair, judge: judged.Judge, what: str) -> Pair:
    """A pair with targets as the judge takes them; raises SettingError for classes that the model
    has no logit for."""
    y = part.y
    if judge.loss is judged.squared_error:
        like = few[:1].expand(len(y), *few.shape[1:])
        y = judged.as_predicted(like, y)
    if judge.loss is judged.cross_entropy:
        judged.check_labels(y, few.shape[1], what)
    return Pair(part.x, y)


def _shaped(net: Network, every: Inners, judge: judged.Judge, what: str) -> Inners:
    """Inner problems with targets as the judge takes them."""

    def fit(one: Inner) -> Inner:
        with torch.no_grad():
            few = net(net.start, one.support.x[: network.SOME])
        return Inner(*(_fitting(few, part, judge, what) for part in one))

    if isinstance(every, Drawn):
        first = every.draw(Seeds.of(0), what, 0)
        if any(a.y.shape != b.y.shape for a, b in zip(first, fit(first), strict=True)):
            with torch.no_grad():
                shape = list(net(net.start, first.support.x).shape)
            raise SettingError(
                f"{what}: the function's y is {list(first.support.y.shape)}, and the model "
                f"predicts {shape}: give y in that shape"
            )
        return every
    return type(every)(tuple(fit(one) for one in every.all))


def _learned(
    asked: Sequence[Any],
    net: Network,
    train: Pair,
    how: Mapping[str, str],
    several: Mapping[str, dict[str, Any]],
) -> list[Learnable]:
    """The parts of lam. Raises SettingError, UnknownName."""
    like = next(iter(net.start.values()))
    parts: list[Learnable] = []
    for one in asked:
        if one == "weight_decays":
            parts.append(Decays(net.start, how["decays"]))
        elif one == "example_weights":
            parts.append(Weights(len(train.y), like))
        elif one == "augmentation":
            parts.append(Strengths(train.x, how["strengths"], like))
    known = names_of(parts)
    rest = {k: v for k, v in several["first"].items() if k not in known}
    functions = [one for one in asked if not isinstance(one, str)]
    if functions:
        parts.append(Own(functions[0], rest, like))
    elif rest:
        raise UnknownName("part of lam called", next(iter(rest)), known)
    known = names_of(parts)
    for name in several["bounds"]:
        if name not in known:
            raise UnknownName("part of lam called", name, known)
    for part in parts:
        adjusted(part, several["first"], several["bounds"])
    return parts


def _found(net: Network, train: Pair, judge: judged.Judge, learned: Sequence[Learnable]) -> Found:
    """What the module, and a function of the user's, turn out to be on a few examples."""
    x, y = (part[: network.SOME] for part in train)
    own = next((part for part in learned if isinstance(part, Own)), None)

    def losses(theta: Params, at: slice = slice(None)) -> Tensor:
        predict = partial(net, dropout=net.trial(x, at))
        if own is None:
            return judge.loss(predict(theta, x[at]), y[at])
        return own.tried(Model(predict, theta), x[at], y[at])

    whole = losses(net.start).detach()
    alone = network.by_itself(net, train.x)
    if own is not None:
        # One more call would often draw the same of few examples.
        if any(not torch.equal(losses(net.start).detach(), whole) for _ in range(CALLS)):
            raise SettingError(
                "learn: the function gives other losses when it is called again: it may draw "
                "nothing; dropout is for the model"
            )
        each = [losses(net.start, at).detach() for at in network.each(x)] if alone else []
        alone = alone and network.near(torch.cat(each), whole)
    return Found(
        by_itself=alone,
        row_by_row=network.row_by_row(net, train.x),
        gated=network.takes_gated(net, train.x),
        affine=network.is_affine(net.module),
        drops=net.drops,
        frozen=any(not p.requires_grad for p in net.module.parameters()),
        once=network.why_not_twice(lambda t: losses(t).mean(), net.start),
    )


def _plain(h: Hyper) -> tuple[Any, ...]:
    return h.name, h.shape, h.low, h.high


def _known(
    given: Given, mark: str, name: str | None, options: dict[str, Any], made_in: str
) -> OwnProblem:
    """The task, registered: its class has what was given, its defaults are the options."""
    base: type[OwnProblem] = Supervised if given.learned else Initialisation
    called = f"own_{mark[:12]}" if name is None else name
    if not (isinstance(called, str) and called.isidentifier()):
        raise SettingError(f"name cannot be {called!r}: letters, digits and _ (a Python name)")
    hints = get_type_hints(base, include_extras=True)  # names of ours, not of the user's module
    defaults = {"fingerprint": mark, **options}
    what = ", ".join(part.word.replace("_", " ") for part in given.learned) or INITIALISATION
    made = dataclasses.make_dataclass(
        "".join(part.capitalize() for part in called.split("_")) or "Own",
        [(k, hints[k], dataclasses.field(default=v)) for k, v in defaults.items()],
        bases=(base,),
        frozen=True,
        namespace={
            "__doc__": f"A problem of your own: {what} of a {_model_words(given)}.",
            "__module__": made_in,
            "given": given,
            "known_as": mark,
            "metric": given.judge.metric,
            "goal": given.judge.goal,
        },
    )
    made.__module__ = made_in
    task: OwnProblem = settings.build(made, defaults, f"task {called}")
    registry.tasks.register(called)(made)
    return task


def _model_words(given: Given) -> str:
    made = network.made(given.model, 0)
    n = sum(p.numel() for p in made.parameters() if p.requires_grad)
    return f"{type(made).__name__} with {n:,} parameters"
