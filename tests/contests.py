"""A small arena with records of its baselines, and plug-ins to be ranked in it: seconds in all."""

from __future__ import annotations

from pathlib import Path

from metabench.api.arena import tournament
from metabench.store import published
from metabench.store.store import Store

PRICES = ", ".join(
    [f"{n} = 1.0" for n in ("inner_gradients", "outer_gradients", "hvps", "mixed_products")]
    + ["function_evaluations = 0.5"]
)
PROBLEM = """
[[problems]]
id = "{id}"
track = "{track}"
task = "quadratic"
set.task = {{ {set} }}
fixed = {fixed}
bound = 0.0
cap = 90.0
looks = 3
select = "best_valid"
{more}prices = {{ {prices} }}
"""
METHOD = """
[[methods]]
id = "{id}"
method = "{method}"
tracks = {tracks}
space."method.outer_lr" = {{ low = 0.01, high = 1.0, log = true }}
"""
ARENA = "".join(
    [
        'kind = "arena"\ntitle = "Quadratics"\n',
        "[budgets.smoke]\ntrials = 3\ntuning_seeds = [100]\nseeds = [0, 1, 2, 3, 4]\n",
        PROBLEM.format(id="two", track="A", set="dim = 2", fixed=4.0, more="quick = true\n",
                       prices=PRICES),
        PROBLEM.format(id="three", track="A", set="dim = 3", fixed=6.0, more="", prices=PRICES),
        PROBLEM.format(id="start", track="B", set='dim = 2, formulation = "init"', fixed=4.0,
                       more="", prices=PRICES),
        METHOD.format(id="unrolled", method="bilevel", tracks='["A", "B"]'),
        METHOD.format(id="implicit", method="ift", tracks='["A"]'),
    ]
)  # fmt: skip
SMALLEST = "".join(
    [
        'kind = "arena"\ntitle = "One quadratic"\n',
        "[budgets.smoke]\ntrials = 2\ntuning_seeds = [100]\nseeds = [0, 1]\n",
        PROBLEM.format(id="two", track="A", set="dim = 2", fixed=4.0, more="", prices=PRICES),
        METHOD.format(id="unrolled", method="bilevel", tracks='["A"]'),
        '[[methods]]\nid = "implicit"\nmethod = "ift"\ntracks = ["A"]\n',
    ]
)
PLUGIN = """
from dataclasses import dataclass
from metabench import method
from metabench.methods.bilevel import Bilevel


@method("{name}")
@dataclass(frozen=True)
class Mine(Bilevel):
    '''Unrolling, or what has been made of it.'''

    {space}

    def hypergradient(self, *words):
        found = super().hypergradient(*words)
        return found._replace(grad={{name: {sign}g for name, g in found.grad.items()}})
"""
SPACE = 'space = {"outer_lr": {"low": 0.01, "high": 1.0, "log": True}}'
THIRD_PARTY = """
import sys
sys.path.insert(0, {folder!r})
from metabench import method
from hypercleaning.central_differences import CentralDifferences
method("central_differences")(CentralDifferences)
"""


def played(folder: Path, text: str = ARENA) -> tuple[Path, Path]:
    """The file of the arena, and that of its baselines' records, run here."""
    path, store = folder / "small.toml", Store(folder / "baselines")
    path.write_text(text)
    tournament.run(path, budget="smoke", store=store)
    return path, published.publish(store.records(), store, folder / published.RECORDS)


def plugin(folder: Path, name: str, *, space: str = SPACE, sign: str = "") -> Path:
    """A file with a method: unrolling, with ``sign`` "-" uphill."""
    path = folder / f"{name}_file.py"
    path.write_text(PLUGIN.format(name=name, space=space or '_ = ""', sign=sign))
    return path


def third_party(folder: Path) -> Path:
    """A file that registers the method of tests/third_party."""
    path = folder / "third_party_file.py"
    home = Path(__file__).parent / "third_party"
    path.write_text(THIRD_PARTY.format(folder=str(home)))
    return path
