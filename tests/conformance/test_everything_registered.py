"""Everything registered keeps the contract, and every pair that applies takes its steps.

The first settings of each are run always, the others with -m slow; so are the first of tasks that
take seconds and have a relative that does not.
"""

import pytest
import torch
from optional import needs

from metabench.conformance.kit import method_checks, subject, task_checks
from metabench.contract.seeds import Seeds
from metabench.core import registry

FEW_SHOT = {"filters": 4, "meta_batch": 2, "queries": 2}
FEW_IMAGES = {"n_train": 40, "n_valid": 40, "n_test": 40, "batch": 8, "width": 6}
REPRESENTATION = {**FEW_SHOT, "formulation": "representation", "dtype": "float64"}
PHOTOGRAPHS = {**FEW_SHOT, "source": "metabench"}
RESIDUAL = {**PHOTOGRAPHS, "network": "resnet12", "filters": 2, "ways": 2, "dtype": "float64"}
CLEANING = {"n_train": 40, "n_valid": 30, "n_test": 50, "shrink": 4, "hidden": 5}
DIGITS = {"n_train": 20, "n_valid": 30, "n_test": 40, "shrink": 4, "noise": 2.0}
EXACT = {"n_train": 20, "n_valid": 20, "shrink": 7, "hidden": 3}
EXACT_HEADS = {"filters": 2, "meta_batch": 2, "ways": 3, "queries": 2}
AUGMENT = {"n_train": 40, "n_valid": 30, "n_test": 50, "shrink": 4, "width": 5, "batch": 8}
LOSSES = {"n_train": 40, "n_valid": 30, "n_test": 50, "shrink": 4, "width": 5, "batch": 20}
DISTILLED = {"n_train": 60, "n_valid": 30, "n_test": 40, "batch": 20, "shrink": 7, "width": 4}
DRAWN = {"size": 6, "width": 5, "meta_batch": 2, "n_train": 10, "n_valid": 5, "n_test": 5}
FEW_CONSTANTS = {"n_train": 20, "n_valid": 20, "n_test": 20, "shrink": 7, "batch": 4}
TWO_STAGES = {"tune_steps": 2, "final_steps": 3}
SUPERCLASSES = {
    **TWO_STAGES, "source": "metabench", "n_tasks": 3, "n_pretrain": 8, "n_tune": 2, "n_valid": 2,
    "n_test": 4, "batch": 2, "width": 4, "stages": 2, "shrink": 2,
}  # fmt: skip
BEATS = {
    **TWO_STAGES, "batch": 4, "n_tune": 8, "n_valid": 8, "n_test": 100, "window": 32, "width": 4,
    "stages": 2, "projection": 4,
}  # fmt: skip
RETRAINING = {
    "n_train": 30, "n_valid": 20, "n_test": 20, "shrink": 4, "width": 2, "batch": 10,
    "checkpoint_steps": 20,
    "top": 3,
}  # fmt: skip
DENOISING = {"size": 6, "n_train": 2, "n_test": 2}
PRIOR = {"n_train": 40, "n_test": 30, "batch": 10, "width": 4, "shrink": 4, "dtype": "float64"}
FEW_EPISODES = {"units": 3, "batch": 2, "memory": 40, "limit": 4, "judged": 1}
COINS = {**TWO_STAGES, "n_tasks": 4, "hidden": 6, "features": 4, "n_pretrain": 30, "n_test": 40}
TASKS = {
    "quadratic": [
        {},
        {"formulation": "init"},
        {"formulation": "prior", "dim": 3},
        {"dim": 4, "carried": True},
        {"dim": 20},
    ],
    "ridge": [{}, {"carried": True}],
    "newsgroups": [
        {"n_train": 30},
        {"n_train": 30, "classes": 20, "decays": "class"},
        {"n_train": 30, "decays": "word"},
    ],
    "bilinear": [{}, {"dim": 3, "adversarial": 0.5, "carried": True}],
    "prisoners": [{"branches": 3}, {"branches": 2, "discount": 0.5}],
    "polar_factor": [{"n": 3}, {"n": 10, "entries": "stable"}],
    "two_mode_gan": [
        {"width": 3, "batch": 6, "held_out": 12},
        {"width": 3, "batch": 6, "held_out": 12, "carried": True},
    ],
    "kernel_ridge": [
        {"n_train": 20, "n_valid": 10, "n_test": 10},
        {"n_train": 20, "n_valid": 10, "n_test": 10, "carried": False},
    ],
    "least_squares": [
        {"rows": 8, "dim": 3},
        {"rows": 20, "dim": 4, "condition": 5.0, "carried": True},
    ],
    "spectral_risk": [
        {"dataset": "concrete", "rows": 30},
        {"dataset": "concrete", "rows": 30, "spectrum": "esrm", "tune": "both"},
        {"dataset": "concrete", "rows": 30, "spectrum": "extremile", "tune": "level"},
    ],
    "multinomial": [
        {"n_train": 30, "n_valid": 20, "n_test": 20, "size": 3},
        {"n_train": 30, "n_valid": None, "n_test": 20, "size": 3, "carried": False},
        {
            "n_train": 30,
            "n_valid": 20,
            "n_test": 20,
            "size": 3,
            "pair": (4, 9),
            "decays": "pixel",
            "batch": 8,
        },
        {
            "n_train": 30,
            "n_valid": 20,
            "n_test": 20,
            "size": 3,
            "batch": 10,
            "exact": True,
        },
    ],
    "glyphs": [
        FEW_SHOT,
        REPRESENTATION,
        {**FEW_SHOT, "train_shots": 2, "inner_batch": 5, "dtype": "float64"},
        {**FEW_SHOT, "formulation": "prior", "ways": 2, "dtype": "float64"},
        {**REPRESENTATION, "train_ways": 7},
        {**REPRESENTATION, "unit_features": True},
        {**FEW_SHOT, "formulation": "context", "context": 3, "dtype": "float64"},
    ],
    "hyper_cleaning": [
        CLEANING,
        {**CLEANING, "network": "mlp", "batch": 20, "dtype": "float64"},
        {
            **CLEANING,
            "batch": 10,
            "outer_batch": 10,
            "l2": 0.1,
            "exact": True,
            "dtype": "float64",
        },
        {**CLEANING, "carried": False},
    ],
    "tv_denoise": [DENOISING, {**DENOISING, "dtype": "float32", "noise": 0.3}],
    "foe_denoise": [
        {**DENOISING, "filters": 2},
        {**DENOISING, "filters": 1, "filter_size": 5, "noise": 0.3},
    ],
    "pbgd_toy": [{"starts": 10}, {"starts": 20, "carried": False}],
    "weight_decay": [
        {"shrink": 4, "n_test": 40, "dtype": "float64"},
        {"shrink": 4, "n_test": 40, "network": "mlp", "hidden": 8},
        {"shrink": 4, "n_test": 40, "carried": False, "dtype": "float64"},
    ],
    "augmentation": [
        {**AUGMENT, "dtype": "float64"},
        {**AUGMENT, "form": "randaugment", "network": "cnn", "width": 2, "dtype": "float64"},
        {**AUGMENT, "form": "network", "filters": 2, "hidden": 4, "dtype": "float64"},
    ],
    "loss_learning": [
        {**LOSSES, "dtype": "float64"},
        {**LOSSES, "form": "weight_net", "dtype": "float64", "valid_batch": 10},
        {**LOSSES, "form": "network", "network": "cnn", "width": 2, "carried": False},
        {**LOSSES, "form": "transition", "network": "linear", "batch": None, "l2": 0.01},
    ],
    "loss_regression": [
        {"n_train": 40, "width": 4},
        {"n_train": 40, "form": "taylor", "batch": 16, "carried": False, "width": 4},
        {"n_train": 40, "form": "examples", "network": "linear", "dtype": "float32"},
    ],
    "omniglot": [FEW_SHOT, REPRESENTATION],
    "distillation": [
        {**DISTILLED, "dtype": "float64"},
        {**DISTILLED, "network": "mlp", "start": "random", "rates": 2, "batches": 2},
        {**DISTILLED, "first": "real", "per_class": 2, "l2": 0.1, "dtype": "float64"},
    ],
    "inr": [
        {**DRAWN, "dtype": "float64"},
        {**DRAWN, "dataset": "photographs", "depth": 1},
        {**DRAWN, "dataset": "cifar10", "source": "metabench", "omega": 10.0},
        {**DRAWN, "formulation": "prior", "dtype": "float64"},
    ],
    "influence_balancing": [{}, {"positive": 2, "negative": 3, "carried": True}],
    "schedule_quadratic": [{}, {"surface": "valley", "steps": 20}],
    "learned_optimiser": [
        {**FEW_CONSTANTS, "hidden": 3, "units": 4, "outer_batch": 10, "dtype": "float64"},
        {**FEW_CONSTANTS, "hidden": 3, "units": 4, "outer_batch": 10, "test_hidden": 5},
    ],
    "sinusoid": [
        {"meta_batch": 2, "width": 5, "dtype": "float64"},
        {"meta_batch": 2, "width": 5, "shots": 5, "test_queries": 7},
        {"meta_batch": 2, "width": 5, "formulation": "prior", "dtype": "float64"},
    ],
    "exact_decay": [
        {"n_train": 30, "n_valid": 30},
        {**EXACT, "network": "mlp", "start": "warm"},
        {**EXACT, "decays": "weight"},
    ],
    "exact_representation": [EXACT_HEADS, {**EXACT_HEADS, "images": "glyphs"}],
    "cifar_fs": [PHOTOGRAPHS, {**PHOTOGRAPHS, "formulation": "representation"}, RESIDUAL],
    "fc100": [PHOTOGRAPHS],
    "caltech101_fs": [FEW_SHOT],
    "miniimagenet": [FEW_SHOT],
    "pretrain_synthetic": [
        {**COINS, "dtype": "float64"},
        {**COINS, "batch": 10, "transfer": "full", "final": "full", "dtype": "float64"},
        {**COINS, "head": "warm", "outer_batch": 4, "tune_rule": "adam"},
        {**COINS, "head": "cotrained", "carried": False, "dtype": "float64"},
    ],
    "pretrain_multitask": [SUPERCLASSES],
    "pretrain_ecg": [BEATS, {**BEATS, "strength": "network", "dtype": "float64"}],
    "pretrain_ptbxl": [{**BEATS, "kernel": 5}],
    "pretrain_ppi": [
        {
            **TWO_STAGES,
            "n_tasks": 20,
            "batch": 4,
            "outer_batch": 8,
            "n_pretrain": 50,
            "n_tune": 20,
            "n_valid": 20,
            "n_test": 100,
            "width": 4,
            "layers": 2,
        },
    ],
    "two_minima": [{}, {"carried": False}],
    "layerwise_prior": [
        PRIOR,
        {**PRIOR, "validation": 0.0, "precisions": "one", "network": "linear"},
        {**PRIOR, "precisions": "weight", "network": "cnn", "width": 2},
    ],
    "noise_level": [{"rows": 30, "width": 3}, {"rows": 30, "width": 3, "validation": 0.0}],
    "rotation_range": [
        {**PRIOR, "samples": 2},
        {**PRIOR, "samples": 2, "validation": 0.0, "law_rotation": 0.0},
    ],
    "control": [
        {**FEW_EPISODES, "algorithm": "n_step", "window": 6},
        {**FEW_EPISODES, "learner": "adam", "carried": True},
        {**FEW_EPISODES, "environment": "lunar_lander", "relu": "exact", "target_every": 3},
        {**FEW_EPISODES, "learner": "random"},
    ],
    "tagi_regression": [
        {"n_train": 8, "n_valid": 4, "n_test": 6, "batch": 4, "units": 5},
        {"n_train": 8, "n_valid": 4, "n_test": 6, "batch": 4, "units": 5, "learner": "adam"},
        {
            "n_train": 8,
            "n_valid": 4,
            "n_test": 6,
            "batch": 4,
            "units": 5,
            "relu": "exact",
            "meta_batch": 2,
        },
    ],
    "retraining": [
        {**RETRAINING, "dtype": "float64"},
        {**RETRAINING, "normalise": False, "dtype": "float64"},
        {
            **RETRAINING,
            "form": "spg_b",
            "cut": True,
            "normalise": False,
            "carried": False,
            "dtype": "float64",
        },
        {**RETRAINING, "form": "spg_b", "residual": "linear_relu", "tune": "both"},
        {**RETRAINING, "form": "fine_tuning", "tune": "rates", "dataset": "cifar100"},
    ],
    "shrinkage": [{}, {"carried": True}],
    "rag_squad": [
        {"table": "synthetic", "questions": 12},
        {"passages": 12, "questions": 8, "w": 0.9, "shift_at": 1, "shift_window": 100},
        {"table": "synthetic", "questions": 9, "shift_at": 2, "shift_w": 0.1, "batch": 1},
    ],
    "step_size": [{}, {"spread": 0.0, "curvature": 4.0}],
    "optimiser_constants": [
        {**FEW_CONSTANTS, "network": "linear", "dtype": "float64"},
        {**FEW_CONSTANTS, "tune": "optimiser", "hidden": 4},
    ],
    "digit_regression": [
        {**DIGITS, "dtype": "float64"},
        {**DIGITS, "decays": "class", "carried": False, "dtype": "float64"},
        {**DIGITS, "decays": "weight", "penalty": "squared", "dtype": "float64", "shrink": 7},
    ],
    "regularised_mnist": [
        {**FEW_IMAGES, "dtype": "float64"},
        {**FEW_IMAGES, "network": "cnn", "tune": "all", "width": 2},
        {**FEW_IMAGES, "tune": "all", "masks": "concrete", "dtype": "float64"},
    ],
}
SELF_EDIT = {"rank": 1, "targets": ("v",), "questions": 2, "question_tokens": 24, "edit_tokens": 16}
TASKS |= {
    "recipe_bandit": [{}, {"reward": "success", "spread": 0.0}],
    "self_edit_weights": [
        {**SELF_EDIT, "edits": ("passage", "rewrite"), "formulation": "init"},
        {**SELF_EDIT, "edits": ("passage", "other"), "dtype": "float64", "meta_batch": 1},
    ],
    "self_edit_policy": [
        {**SELF_EDIT, "sample_tokens": 8, "documents": 2, "adapt_epochs": 2, "policy_rank": 1},
        {
            **SELF_EDIT,
            "sample_tokens": 8,
            "documents": 2,
            "adapt_epochs": 2,
            "policy_rank": 1,
            "policy_targets": ("q", "v"),
            "adapt_decay": "linear",
            "adapt_clip": 0.5,
        },
    ],
    "self_edit_recipe": [
        {**SELF_EDIT, "documents": 2, "rates": (0.01,), "epochs": (1, 2)},
        {
            **SELF_EDIT,
            "documents": 2,
            "epochs": (1,),
            "reward": "grader",
            "grader": "tinylm_260k",
            "answer_tokens": 4,
            "grader_prompt": "{question}{gold}{answer}",
        },
    ],
}
METHODS = {
    "bilevel": [{}, {"mode": "forward", "learn_rate": True}, {"truncate": 2, "memory": "states"}],
    "maml": [{"inner_steps": 3}, {"order": "first"}, {"anil": True, "memory": "checkpoints"},
             {"meta_sgd": True},
             {"inner_steps": 3, "layer_step_rates": True},
             {"inner_steps": 3, "multi_step_epochs": 2, "epoch_steps": 1, "anil": True},
             {"inner_steps": 3, "step_norms": True, "layer_step_rates": True},
             {"inner_steps": 3, "first_order_epochs": 1, "epoch_steps": 2}],
    "ift": [{}, {"inverse": "cg", "damping": 0.1, "indefinite": "truncate"},
            {"inverse": "identity"}, {"inverse": "identity", "alpha": 0.1},
            {"inverse": "cg", "tolerance": 1e-3, "indefinite": "truncate"}],
    "hoag": [{}, {"schedule": "exact", "solver_rule": "lbfgs", "double_step": True}],
    "hypernet": [{"inner_steps": 3, "inner_lr": 0.05},
                 {"training": "global", "network": "relu", "alternate": False, "warmup": 1},
                 {"training": "simplified", "network": "factorised", "squash": True}],
    "maid": [{}, {"controller": "fixed", "first_accuracy": 1e-4, "solver_rule": "lbfgs"},
             {"solver_rule": "gd", "first_residual": 1e-2, "first_step": 0.1}],
    "marglik": [{}, {"outputs": "one", "form": "kfac", "burn_in": 1, "batch": 7},
                {"outputs": "one each", "form": "diagonal", "chunk": 5, "clip": 0.01}],
    "imaml": [{}, {"damping": 1.0, "test_steps": 3}],
    "protonet": [{}],
    "cavia": [{}, {"order": "first", "inner_steps": 1}],
    "linear_probe": [{"inner_steps": 3, "batch": 5},
                     {"inner_steps": 3, "batch": 5, "head": "cosine"}],
    "one_step": [{}, {"mixed": "differences", "inner_steps": 3},
                 {"mixed": "differences", "keep_moments": True, "inner_steps": 2, "epsilon": 1.0},
                 {"inner_steps": 3, "real_step": True, "real_momentum": 0.9, "real_nesterov": True,
                  "real_decay": 1e-3, "inner_drops": (0.5,)}],
    "random": [{"inner_steps": 10}, {}, {"inner_steps": 10, "sequence": "uniform"},
               {"inner_steps": 5, "initial_first": True, "finalists": 2, "repeats": 2}],
    "stn": [{}, {"rank": 1}, {"tune_scale": False, "samples": 3, "squash": False, "warmup": 1},
            {"bias_slopes": "uniform"}],
    "delta_stn": [{}, {"rank": 1}, {"tune_scale": False, "samples": 3, "squash": False},
                  {"order": "value_first", "bias_slopes": "uniform"}],
    "maml_learn2learn": [{}, {"order": "first"}],
    "pbgd": [{}, {"penalty": "gradient"},
             {"gamma_first": 1.0, "ramp_steps": 2, "inner_steps": 30, "ahead": 40}],
    "sgld": [{"inner_steps": 4}, {"inner_steps": 4, "estimator": "forward"},
             {"inner_steps": 4, "estimator": "covariance"}],
    "optuna_tpe": [{"inner_steps": 10, "startup": 1},
                   {"inner_steps": 5, "startup": 1, "initial_first": True, "finalists": 2}],
    "cehpo": [{"inner_steps": 5, "samples": 8},
              {"inner_steps": 5, "samples": 8, "answer": "best", "tau": 0.1}],
    "cehpo_online": [{"inner_steps": 5, "samples": 8, "segment": 2},
                     {"inner_steps": 5, "samples": 8, "initial_first": True}],
    "grid": [{"inner_steps": 5, "points": 2}, {"inner_steps": 5, "warm_start": True},
             {"inner_steps": 5, "points": 2, "initial_first": True, "finalists": 2}],
    "successive_halving": [{"inner_steps": 9, "points": 9},
                           {"inner_steps": 9, "points": 9, "resume": False}],
    "hyperband": [{"inner_steps": 9}, {"inner_steps": 9, "initial_first": True}],
    "asha": [{"inner_steps": 9, "rungs": 3}, {"inner_steps": 9, "rungs": 3, "resume": False},
             {"inner_steps": 9, "rungs": 3, "initial_first": True}],
    "ridge_rider": [{"window": 2}, {"directions": "singular", "inner_steps": 3, "window": 1}],
    "ucb": [{"inner_steps": 5}, {"inner_steps": 5, "points": 2, "alpha": 0.1, "forget_at": 2}],
    "thompson": [{"inner_steps": 5}, {"inner_steps": 5, "points": 2, "forget_at": 2}],
    "hier_ucb": [{"inner_steps": 5}, {"inner_steps": 5, "credit": "all", "score": "arm"},
                 {"inner_steps": 5, "begin": "random", "points": 2, "forget_at": 2}],
    "soba": [{}, {"average": 0.5, "inner_steps": 2, "decay": "sqrt"},
             {"reduction": "saga", "block": 16},
             {"reduction": "saga", "block": 7, "first_tables": "full", "inner_steps": 2}],
    "amigo": [{"inner_steps": 3, "linear_steps": 2}],
    "stocbio": [{"inner_steps": 3, "linear_steps": 2}],
    "f2sa": [{"inner_steps": 3}, {"inner_steps": 2, "first_multiplier": 5.0, "power": 0.0}],
    "bome": [{"inner_steps": 3}, {"inner_steps": 3, "barrier": "gap", "eta": 0.1}],
    "es": [{"inner_steps": 6, "segment": 3, "pairs": 2},
           {"inner_steps": 6, "estimator": "full", "pairs": 2},
           {"inner_steps": 6, "segment": 3, "estimator": "truncated", "pairs": 2},
           {"inner_steps": 6, "segment": 3, "estimator": "single", "objective": "sum"}],
    "restem": [{}, {"select": "above", "threshold": -0.1, "samples": 3, "batch": 2}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


HEAVY = (
    *("caltech101_fs", "cifar_fs", "control", "exact_decay", "exact_representation", "fc100"),
    *("newsgroups", "pretrain_ecg", "pretrain_multitask", "rotation_range", "self_edit_weights"),
    *("spectral_risk", "tv_denoise", "two_mode_gan"),
)
"""Tasks that are run with -m slow alone."""


def built_in(kind):
    return [e.name for e in registry.REGISTRIES[kind].entries() if e.origin == "built-in"]


def with_settings(kind, chosen):
    return [
        pytest.param(
            registry.REGISTRIES[kind].get(name)(**set_),
            id=f"{name}{number or ''}",
            marks=[pytest.mark.slow] * (bool(number) or name in HEAVY),
        )
        for name in built_in(kind)
        for number, set_ in enumerate(chosen.get(name, [{}]))
    ]


@pytest.mark.parametrize("task", with_settings("task", TASKS))
def test_a_task_keeps_the_contract(task):
    for package in getattr(task, "packages", ()):
        needs(package)
    task.build(Seeds.of(0), torch.device("cpu"))
    for _, check in task_checks(task):
        check()


@pytest.mark.parametrize("method", with_settings("method", METHODS))
def test_a_method_keeps_the_contract(method):
    for package in getattr(method, "packages", ()):
        needs(package)
    for _, check in method_checks(method):
        check()


@pytest.mark.parametrize("kind", ["task", "method", "solver"])
def test_default_settings_are_valid(kind):
    for name in built_in(kind):
        assert subject(kind, name) == registry.REGISTRIES[kind].get(name)()


def test_no_settings_are_left_over():
    assert set(TASKS) <= set(built_in("task")) and set(METHODS) <= set(built_in("method"))
