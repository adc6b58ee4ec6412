"""The code as it was at submission: a wheel of the installed package, unpacked where jobs find it.

Jobs import from the run's folder, so that editing or updating while they wait changes nothing, and
each of them checks the hash before it works. Plug-in files travel along; packages that a plug-in
or an entry point comes from do not: their versions are in the records.
"""

from __future__ import annotations

import base64
import compileall
import hashlib
import json
import os
import shutil
import zipfile
from importlib import metadata
from pathlib import Path

from metabench.core.environment.provenance import NOTE, digest, files, git
from metabench.core.errors import MetabenchError
from metabench.store.files import write_atomic

_DATE = (1980, 1, 1, 0, 0, 0)


def take(folder: Path) -> str:
    """Put a wheel of the code into ``folder``, and the same unpacked into ``folder/code``.

    Gives its sha256. The plug-ins that are loaded go to ``folder/plugins``.
    """
    content = files()
    sha = digest(content)
    version = metadata.version("metabench")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"metabench-{version}+{sha[:12]}-py3-none-any.whl"
    write_wheel(wheel, content, f"{version}+{sha[:12]}")
    draft = folder / f".code.{os.getpid()}.tmp"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(draft)
    note = {**git(), "sha256": sha}
    (draft / "metabench" / NOTE).write_text(json.dumps(note, indent=1) + "\n")
    # Once here, and not by every job.
    compileall.compile_dir(draft, quiet=2, force=True)
    os.replace(draft, folder / "code")
    for path in plugins():
        target = folder / "plugins" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    return sha


def plugins() -> list[Path]:
    """The plug-in files of this process."""
    listed = os.environ.get("METABENCH_PLUGINS", "").split(os.pathsep)
    return [Path(p) for p in listed if p]


def write_wheel(path: Path, content: dict[str, bytes], version: str) -> None:
    """A wheel that pip can install: the same content gives the same bytes."""
    info = f"metabench-{version}.dist-info"
    known = metadata.metadata("metabench")
    requires = metadata.requires("metabench") or []
    head = ["Metadata-Version: 2.1", "Name: metabench", f"Version: {version}"]
    head += [f"Summary: {known['Summary']}", f"Requires-Python: {known['Requires-Python']}"]
    head += [f"Provides-Extra: {extra}" for extra in known.get_all("Provides-Extra") or []]
    head += [f"Requires-Dist: {one}" for one in requires]
    points = "[console_scripts]\nmetabench = metabench.__main__:main\n"
    tag = "Wheel-Version: 1.0\nGenerator: metabench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    whole = {
        **content,
        f"{info}/METADATA": ("\n".join(head) + "\n").encode(),
        f"{info}/WHEEL": tag.encode(),
        f"{info}/entry_points.txt": points.encode(),
    }
    rows = []
    for name, data in whole.items():
        sha = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={sha},{len(data)}")
    whole[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in whole.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), data, zipfile.ZIP_DEFLATED)


def check(sha256: str) -> None:
    """Raise MetabenchError where the code that this process runs is not the one submitted."""
    found = digest(files())
    if found != sha256:
        where = Path(__file__).parents[2]
        raise MetabenchError(
            f"the code in {where} is not what was submitted: sha256 {found[:12]}, not "
            f"{sha256[:12]}; submit again"
        )


def job_environment(folder: Path) -> dict[str, str]:
    """Variables that make a job run the snapshot in ``folder``."""
    out = {"PYTHONPATH": str(folder / "code"), "PYTHONSAFEPATH": "1"}
    found = sorted((folder / "plugins").glob("*.py"))
    if found:
        out["METABENCH_PLUGINS"] = os.pathsep.join(map(str, found))
    return out


def write_json(path: Path, data: object) -> None:
    """Plain data, written whole or not at all."""
    write_atomic(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())
