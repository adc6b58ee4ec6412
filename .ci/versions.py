"""Constraints for pip: the oldest versions that pyproject.toml allows, or those installed here.

python .ci/versions.py oldest [--but NAME...]    each lower bound as "name==version"
python .ci/versions.py newest                    what is installed, for constraints/newest.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path


def bounds(*without: str) -> dict[str, str]:
    """Package to its lowest version ("" where none is given), all extras but ``without``."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    out = {}
    for extra in groups.keys() - {*without}:
        for requirement in groups[extra]:
            found = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?(?:[>=]=([\d.]+))?", requirement)
            assert found is not None, requirement
            if found[1] != project["name"]:
                out[found[1]] = found[3] or ""
    return out


def main(which: str, *but: str) -> None:
    """Print one of the two."""
    # Peers to compare with and trackers that bring a server's packages are in extras of their own;
    # with the oldest they are not tested.
    apart = ("bench", "learn2learn", "mlflow", "wandb")
    known = bounds("dev") if which == "newest" else bounds(*apart)
    for name, lowest in sorted(known.items()):
        version = lowest
        if which == "newest":
            try:
                version = metadata.version(name).partition("+")[0]
            except metadata.PackageNotFoundError:
                continue
        if name not in but:
            print(f"{name}=={version}")


if __name__ == "__main__":
    main(*(word for word in sys.argv[1:] if word != "--but"))
