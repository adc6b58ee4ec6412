"""The protein graphs of Hu et al. in their own layout, written small: reader, network, task."""

import importlib
import sys
import types

import pytest
import torch
from oracles import F64, context, differences, hypergradient

from metabench.conformance.kit import task_checks
from metabench.contract import autodiff
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.errors import DataMissing, MetabenchError, SettingError
from metabench.core.registry import methods, tasks
from metabench.datasets import locate

ppi = importlib.import_module("metabench.tasks.data.ppi")
gin = importlib.import_module("metabench.tasks.models.gin")
pretrain_ppi = importlib.import_module("metabench.tasks.pretrain_ppi")

PRETRAIN, DOWNSTREAM, N = 6, 8, 48
TINY = {
    "batch": 3, "outer_batch": None, "n_tune": 8, "n_valid": 6, "width": 3, "layers": 2,
    "tune_steps": 2, "final_steps": 3, "final_batch": 5, "dtype": "float64",
}  # fmt: skip


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def proteins(n=N):
    """A dict of tensors a graph, with the names of the real ones; every second one is human."""
    gen = torch.Generator().manual_seed(0)
    out = []
    for i in range(n):
        nodes = 1 + int(torch.randint(6, (), generator=gen))
        pairs = [(a, b) for a in range(nodes) for b in range(a)]
        pairs = [pair for pair in pairs if torch.rand((), generator=gen) < 0.7]
        both = [end for a, b in pairs for end in ((a, b), (b, a))]
        kinds = (torch.rand(len(pairs), 7, generator=gen) < 0.4).float().repeat_interleave(2, 0)
        out.append({
            "x": torch.ones(nodes, 1),
            "edge_index": torch.tensor(both, dtype=torch.int64).reshape(-1, 2).T,
            "edge_attr": torch.cat([kinds, torch.zeros(len(both), 2)], 1),
            "species_id": torch.tensor([9606 if i % 2 else ppi.SPECIES[i // 2 % 7]]),
            "center_node_idx": torch.randint(nodes, (1,), generator=gen),
            "go_target_pretrain": torch.randint(2, (PRETRAIN,), generator=gen),
            "go_target_downstream": torch.randint(2, (DOWNSTREAM,), generator=gen),
        })  # fmt: skip
    return out


def joined(graphs):
    """The tensors of all graphs one after the other, and where each graph's begin."""
    whole, slices = {}, {}
    for name in graphs[0]:
        along = 1 if name == "edge_index" else 0
        parts = [graph[name] for graph in graphs]
        whole[name] = torch.cat(parts, along)
        sizes = torch.tensor([0] + [part.shape[along] for part in parts])
        slices[name] = sizes.cumsum(0)
    return whole, slices


def write(folder, held, **how):
    path = folder / "bio" / "dataset" / ppi.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, path, **how)
    return path


class Data:
    """What torch_geometric 1 pickles: its tensors are attributes."""


Data.__module__, Data.__qualname__ = "torch_geometric.data.data", "Data"


def old(monkeypatch, whole, **more):
    """An instance that pickles as torch_geometric 1 did."""
    for name in ("torch_geometric", "torch_geometric.data", "torch_geometric.data.data"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torch_geometric.data.data"].Data = Data
    made = Data()
    made.__dict__.update({"y": None, "pos": None, **whole, **more})
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ppi, "PRETRAIN", PRETRAIN)
    monkeypatch.setattr(ppi, "DOWNSTREAM", DOWNSTREAM)
    monkeypatch.setattr(pretrain_ppi, "FOLD", 2)
    return tmp_path


@pytest.fixture
def graphs(folder):
    """The file as torch_geometric 1 under torch 1.0 wrote it, and what is in it."""
    made = proteins()
    whole, slices = joined(made)
    with pytest.MonkeyPatch.context() as patch:
        write(folder, (old(patch, whole), slices), _use_new_zipfile_serialization=False)
    return made


def network(seed=0, **set_):
    task = tasks.get("pretrain_ppi")(**{**TINY, **set_})
    return task.build(Seeds.of(seed), torch.device("cpu"))


def same_graphs(found, made):
    assert len(found.species) == len(made)
    for i, graph in enumerate(made):
        cut = found.cut(torch.tensor([i]), torch.device("cpu"), F64)
        assert torch.equal(torch.stack([cut.source, cut.target]), graph["edge_index"])
        assert cut.centre.tolist() == graph["center_node_idx"].tolist()
        incoming = torch.zeros(len(graph["x"]), 8, dtype=F64)
        for (_, to), kinds in zip(graph["edge_index"].T, graph["edge_attr"], strict=True):
            incoming[to, :7] += kinds[:7]
            incoming[to, 7] += 1
        assert torch.equal(cut.incoming, incoming)
        assert torch.equal(found.pretrain[i].long(), graph["go_target_pretrain"])
        assert torch.equal(found.downstream[i].long(), graph["go_target_downstream"])
        assert int(found.species[i]) == int(graph["species_id"])


def test_the_file_is_read_without_the_package_that_wrote_it(graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)  # importing it fails
    before = torch.serialization.get_safe_globals()
    same_graphs(ppi.load(), graphs)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_a_file_of_the_package_itself_is_read(folder):
    """torch_geometric 2 keeps tensors elsewhere, and later versions a dict."""
    pytest.importorskip(
        "torch_geometric",
        reason="not installed: pip install torch_geometric (the task itself does without it)",
        exc_type=ImportError,
    )
    from torch_geometric.data import Data as Real
    from torch_geometric.data import InMemoryDataset

    made = proteins()
    whole, slices = InMemoryDataset.collate([Real(**graph) for graph in made])
    write(folder, (whole, slices))
    same_graphs(ppi.load(), made)
    ppi._read.cache_clear()
    write(folder, (whole.to_dict(), slices, Real))
    same_graphs(ppi.load(), made)


class Evil:
    def __reduce__(self):
        return (print, ("never",))


def changed(**how):
    def harm(patch, whole, slices):
        return old(patch, {**whole, **{k: f(whole[k]) for k, f in how.items()}}), slices

    return harm


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda patch, whole, slices: Evil(), "(?s)cannot be read .*print"),
        (lambda patch, whole, slices: [1], "holds a list, not data and slices"),
        (lambda patch, whole, slices: (old(patch, whole), {}), "where the graphs' edge_index begi"),
        (changed(go_target_pretrain=lambda v: None), "no tensor go_target_pretrain: it is not the"),
        (changed(go_target_downstream=lambda v: v[1:]), r"go_target_downstream is \[383\], not"),
        (changed(species_id=lambda v: v + 1), "is none of the eight"),
        (changed(edge_index=lambda v: v + 5), "an edge ends outside of its graph"),
        (changed(edge_attr=lambda v: v + 1), "edges to oneself or masked"),
    ],
)
def test_other_files_are_refused(folder, harm, reason):
    with pytest.MonkeyPatch.context() as patch:
        write(folder, harm(patch, *joined(proteins())))
    with pytest.raises(MetabenchError, match=reason):
        ppi.load()


def test_the_real_file_has_other_counts(graphs, monkeypatch):
    monkeypatch.setattr(ppi, "PRETRAIN", 5000)
    with pytest.raises(MetabenchError, match=r"go_target_pretrain is \[288\], not \[240000\]"):
        ppi.load()


def test_what_is_missing_comes_with_the_address(tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    with pytest.raises(DataMissing) as missing:
        tasks.get("pretrain_ppi")().build(Seeds.of(0), torch.device("cpu"))
    assert "wget http://snap.stanford.edu/gnn-pretrain/data/bio_dataset.zip" in missing.value.repair
    assert "the folder that holds bio/dataset" in missing.value.repair
    [verdict] = [s for s in locate.status() if s.dataset.name == "ppi_bio"]
    assert verdict.found is None


# --- the network ---------------------------------------------------------------------------------


def by_hand(p, graph, layers, keep=None):
    """The features of one graph, node by node and edge by edge."""
    n = len(graph["x"])
    h = [p["node.weight"][0]] * n
    for i in range(layers):
        at = f"layer{i}."

        def along(kinds, at=at):
            return p[at + "edge.weight"] @ kinds + p[at + "edge.bias"]

        myself = torch.tensor([0.0] * 7 + [1.0], dtype=F64)
        sums = [torch.cat([h[v], along(myself)]) for v in range(n)]
        for (a, b), kinds in zip(graph["edge_index"].T.tolist(), graph["edge_attr"], strict=True):
            sums[b] = sums[b] + torch.cat([h[a], along(kinds[:8].double())])
        wide = torch.stack([p[at + "wide.weight"] @ s + p[at + "wide.bias"] for s in sums])
        wide = wide - wide.mean(1, keepdim=True)
        wide = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt()
        wide = (wide * p[at + "norm.scale"] + p[at + "norm.shift"]).clamp(min=0)
        new = wide @ p[at + "narrow.weight"].T + p[at + "narrow.bias"]
        new = new if i == layers - 1 else new.clamp(min=0)
        h = list(new if keep is None else new * keep[i])
    return torch.cat([torch.stack(h).mean(0), h[int(graph["center_node_idx"])]])


def some_weights(problem, episode):
    gen = torch.Generator().manual_seed(1)
    return {
        k: v + 0.3 * torch.randn(v.shape, generator=gen, dtype=v.dtype)
        for k, v in problem.init_inner({}, episode).items()
    }


def test_the_network_by_hand(graphs):
    problem = network()
    theta = some_weights(problem, problem.episode("train", 0))
    p = {k.removeprefix("encoder."): v for k, v in theta.items() if k.startswith("encoder.")}
    chosen = torch.tensor([5, 0, 17, 5])
    found = problem.encode(theta, chosen)
    assert found.shape == (4, 6) == (4, problem.feature_size)
    close(found, torch.stack([by_hand(p, graphs[i], 2) for i in chosen.tolist()]))
    close(problem.encode_all(theta, chosen), found)


def test_dropout_is_data_of_pretraining_alone(graphs):
    problem = network(dropout=0.5)
    episode = problem.episode("train", 0)
    theta, batch = some_weights(problem, episode), episode.batch(0)
    keep = batch["keep"]
    nodes = [len(graphs[i]["x"]) for i in batch["x"].tolist()]
    assert keep.shape == (2, sum(nodes), 3) and set(keep.unique().tolist()) == {0.0, 2.0}
    p = {k.removeprefix("encoder."): v for k, v in theta.items() if k.startswith("encoder.")}
    parts = zip(batch["x"].tolist(), keep.split(nodes, 1), strict=True)
    f = torch.stack([by_hand(p, graphs[i], 2, part) for i, part in parts])
    close(
        problem.predict({}, theta, batch), f @ theta["pretrain.weight"].T + theta["pretrain.bias"]
    )
    assert "keep" not in network(dropout=0.0).episode("train", 0).batch(0)


def test_the_weighed_loss_by_hand(graphs):
    problem = network()
    gen = torch.Generator().manual_seed(0)
    lam = {"logit": torch.randn(PRETRAIN, generator=gen, dtype=F64)}
    episode = problem.episode("train", 0)
    theta, batch = some_weights(problem, episode), episode.batch(2)
    y = torch.stack([graphs[i]["go_target_pretrain"] for i in batch["x"].tolist()])
    z = problem.predict(lam, theta, batch)
    each = torch.log1p(torch.exp(torch.where(y > 0, -z, z)))
    close(problem.inner_loss(lam, theta, batch), (2 * lam["logit"].sigmoid() * each).mean())


# --- the task ------------------------------------------------------------------------------------


def test_species_are_split_and_half_of_the_human_ones_are_pretrained_on(graphs):
    human = {i for i, graph in enumerate(graphs) if int(graph["species_id"]) == 9606}
    others = set(range(N)) - human
    hard, easy = network(n_tune=None, n_valid=None), network(n_tune=None, n_valid=None, test="easy")
    tune, valid, test = (
        set(part["x"].tolist()) for part in (*hard.roles["train"], hard.roles["test"][1])
    )
    assert tune | valid == others and not tune & valid and len(tune) == int(0.85 * len(others))
    pretrained = set(hard.pretrained.tolist())
    assert len(test) == len(human) - len(human) // 2 and test <= human
    assert pretrained == others | (human - test)
    assert set(easy.roles["test"][1]["x"].tolist()) == human - test
    y = hard.roles["test"][1]["y"]
    assert y.shape == (len(test), DOWNSTREAM) and not y.isnan().any()
    for i, row in zip(hard.roles["test"][1]["x"].tolist(), y, strict=True):
        assert torch.equal(row.long(), graphs[i]["go_target_downstream"])
    few = network(n_pretrain=5, n_test=4)
    assert len(few.pretrained) == 5 and len(few.roles["test"][1]["x"]) == 4
    with pytest.raises(SettingError, match="n_valid is 20; there are 16 graphs for it"):
        network(n_valid=20)


def test_unseen_functions_are_asked_for_in_the_test_alone(graphs):
    problem = network(unseen=True, fold=1, head="warm")
    for split, parts in problem.roles.items():
        for part in parts:
            gone = part["y"].isnan()
            assert torch.equal(gone.all(0), gone.any(0))
            asked = (~gone.any(0)).nonzero()[:, 0].tolist()
            assert asked == ([2, 3] if split == "test" else [0, 1, 4, 5, 6, 7])
    episode = problem.episode("test", 0)
    theta = problem.init_inner({}, episode)
    end = problem.finally_tuned(theta, episode.outer)["head.weight"]
    assert end[2:4].any() and not end[[0, 1, 4, 5, 6, 7]].any()
    found = problem.metrics(problem.init_outer(), theta, episode)
    assert 0 <= found["auroc"] <= 1 and found["weight_mean"] == 1 and found["weight_low"] == 0


def test_the_composite_hypergradient_against_a_dense_reference(graphs):
    """-(d2 L_PT / dlam dtheta) alpha sum_j (I - alpha H)^j v1 with whole matrices."""
    small = {"width": 2, "layers": 1, "batch": 4, "tune_lr": 0.5}
    ctx = context(tasks.get("pretrain_ppi")(**{**TINY, **small}))
    problem, terms, alpha = ctx.problem, 3, 0.2
    episode = problem.episode("train", 0)
    theta = some_weights(problem, episode)
    gen = torch.Generator().manual_seed(0)
    lam = {"logit": torch.randn(PRETRAIN, generator=gen, dtype=F64)}
    sizes = [v.numel() for v in theta.values()]

    def unflat(w):
        parts = zip(theta.items(), w.split(sizes), strict=True)
        return {k: x.view(v.shape) for (k, v), x in parts}

    w = torch.cat([v.reshape(-1) for v in theta.values()])

    def slope(logit, w):
        def inner(w):
            return problem.inner_loss({"logit": logit}, unflat(w), episode.batch(0))

        return torch.autograd.grad(inner(w), w, create_graph=True)[0]

    logit, w = lam["logit"].clone().requires_grad_(), w.requires_grad_()
    mixed, h = torch.autograd.functional.jacobian(slope, (logit, w))
    series = sum(
        torch.linalg.matrix_power(torch.eye(len(h), dtype=F64) - alpha * h, j)
        for j in range(terms + 1)
    )
    v1 = differences(lambda t: problem.outer_loss(lam, t, episode.outer), theta)
    v1 = torch.cat([v1[k].reshape(-1) for k in theta])
    expected = -mixed.T @ (alpha * series @ v1)
    found = hypergradient(
        ctx, "ift", lam=lam, theta=theta, inner_steps=0, terms=terms, alpha=alpha, growth_limit=1e9
    )["logit"]
    assert float(expected.norm()) > 1e-6
    close(found, expected, 1e-7)


def test_unrolled_through_both_stages_against_differences(graphs):
    ctx = context(tasks.get("pretrain_ppi")(**TINY))
    problem, steps, lr = ctx.problem, 2, 0.1
    episode = problem.episode("train", 0)
    lam = {"logit": torch.linspace(-1, 1, PRETRAIN, dtype=F64)}
    start = some_weights(problem, episode)

    def f(lam):
        theta = start
        for t in range(steps):
            g = autodiff.grad(lambda v, t=t: problem.inner_loss(lam, v, episode.batch(t)), theta)[1]
            theta = autodiff.axpy(-lr, g, theta)
        return problem.outer_loss(lam, theta, episode.outer)

    found = hypergradient(ctx, "bilevel", lam=lam, theta=start, inner_steps=steps, inner_lr=lr)
    close(found["logit"], differences(f, lam)["logit"], 1e-7)


@pytest.mark.parametrize(
    "set_", [{}, {"unseen": True, "head": "warm", "dtype": "float32", "final_batch": None}]
)
def test_proteins_keep_the_contract(graphs, set_):
    some = ("fixed", "ift", "bilevel", methods.get("random")(inner_steps=5))
    for _, check in task_checks(tasks.get("pretrain_ppi")(**{**TINY, "n_tasks": 5, **set_}), some):
        check()


def test_thousands_of_weights_cannot_be_searched():
    task = tasks.get("pretrain_ppi")
    assert "a weight for each of 5000 tasks" in why_not(task(), methods.get("random")())
    assert why_not(task(n_tasks=100), methods.get("random")()) is None
    assert why_not(task(), methods.get("ift")()) is None
    with pytest.raises(SettingError, match="carried cannot be False"):
        importlib.import_module("metabench.core.settings").build(task, {"carried": False}, "task")
