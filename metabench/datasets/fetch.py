"""Getting data sets that have a public address; nothing is ever downloaded unasked."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from metabench.core.errors import MetabenchError
from metabench.datasets import cache
from metabench.datasets.catalogue import Archive, File, dataset
from metabench.datasets.download import Progress, download, reach
from metabench.datasets.verify import MARK, digest_of_all, fault, shortage


def fetch(name: str, *, to: Path | None = None, progress: Progress | None = None) -> Path:
    """Download a data set that has a public address, check it and unpack it; gives its folder.

    What is whole already is not fetched again; a partial download continues. Nothing
    half-unpacked is ever left under the final name. Raises MetabenchError where there is no public
    address, no network, a wrong checksum, or a folder that cannot be written.
    """
    known = dataset(name)
    layout = next((x for x in known.layouts if x.has_address), None)
    if layout is None:
        if known.by_hand:
            raise MetabenchError(
                f"metabench does not fetch {name}; by hand: {known.by_hand}; {known.offline}"
            )
        raise MetabenchError(f"{name} has no public address to fetch from; {known.offline}")
    folder = (to or cache.folder()) / layout.folder
    try:
        for file in layout.files:
            if file.urls and not (
                (folder / file.path).is_file() and not fault(folder / file.path, file)
            ):
                _fetch_file(folder, file, progress)
        for archive in layout.archives:
            if shortage(archive, archive.unpacked(folder)):
                target = _target(folder, archive)
                target.parent.mkdir(parents=True, exist_ok=True)
                path = target.with_name(archive.urls[0].rpartition("/")[2])
                download(archive.urls, path, archive.checksum, progress)
                _unpack(path, folder, archive)
                path.unlink()
        if layout.hub and layout.lacks(folder):
            _fetch_hub(layout.hub, folder, progress)
    except MetabenchError as error:
        raise MetabenchError(f"{error}; by hand: {known.offline}") from None
    except OSError as error:
        where = error.filename or folder
        raise MetabenchError(f"cannot write {where}: {error.strerror}") from None
    return folder


def _fetch_hub(name: str, folder: Path, progress: Progress | None) -> None:
    """Download a data set of the hub and keep it as the package ``datasets`` saves it.

    Raises MetabenchError, OSError where the folder cannot be written.
    """
    from datasets import config, load_dataset
    from datasets.exceptions import DatasetsError

    address = f"{config.HF_ENDPOINT}/datasets/{name}"
    if progress is not None:
        progress(address, 0, None)
    if not Path(config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir():
        reach(address)  # the library would try again and again
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = load_dataset(name, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise MetabenchError(f"datasets cannot load {name}: {error}") from error
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        held.save_to_disk(str(Path(temporary) / "new"))
        if folder.exists():
            os.replace(folder, Path(temporary) / "old")
        os.replace(Path(temporary) / "new", folder)


def _fetch_file(folder: Path, file: File, progress: Progress | None) -> None:
    """Download and unpack a single file. Raises MetabenchError."""
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    packed, part = (path.with_name(path.name + end) for end in (".gz", ".unpacked"))
    download(file.urls, packed, file.checksum, progress)
    with gzip.open(packed) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    if wrong := fault(part, file):
        part.unlink()
        raise MetabenchError(f"{packed.name} unpacks to {wrong}")
    os.replace(part, path)
    packed.unlink()


def _target(folder: Path, archive: Archive) -> Path:
    """Where an archive unpacks to."""
    return folder if archive.folder == "." else folder / archive.folder


def _unpack(path: Path, folder: Path, archive: Archive) -> None:
    target = _target(folder, archive)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        scratch = Path(temporary)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                packed.extractall(scratch)
        else:
            with tarfile.open(path) as packed_tar:
                packed_tar.extractall(scratch, filter="data")
        inside = scratch / target.name
        files = archive.unpacked(inside if archive.folder == "." else scratch)
        if short := shortage(archive, files):
            raise MetabenchError(f"{path.name} holds {short} in {target.name!r}")
        (inside / MARK).write_text(digest_of_all(inside, files) + "\n")
        if target.exists():
            os.replace(target, scratch / "old")
        os.replace(inside, target)
