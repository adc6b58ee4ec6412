"""Settings of few-shot classification: episodes, network, where lam enters; what these offer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from metabench.contract.problem import GRADIENTS
from metabench.contract.task import Task
from metabench.core import settings
from metabench.core.errors import SettingError
from metabench.core.text import counted

from ...models.networks import ConvNet, Network
from ..images.class_images import Classes, GivenEpisode
from .learned_start import LACKS, LACKS_OF_A_PRIOR, LACKS_OF_A_START

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class FewShotSettings(Task):
    """Settings that every few-shot task shares, and what follows from them."""

    ways: Annotated[int, Field(ge=2)] = 5
    shots: Count = 1
    queries: Count = 5
    """Query images a class."""
    meta_batch: Count = 16
    """Episodes an outer step."""
    formulation: Literal["init", "representation", "prior", "context"] = "init"
    """lam = all initial weights; or lam = the body, with a head from zeros for each episode; or lam
    = the centre of a Gaussian prior on all weights, which is part of the inner loss; or lam = all
    weights, with context parameters from zeros for each episode."""
    filters: Count = 64
    downsample: Literal["stride", "pool"] = "stride"
    train_shots: Count | None = None
    """Support images a class in training (Reptile uses more); None: as ``shots``."""
    inner_batch: Count | None = None
    """Images of an inner step in training; None, and always at evaluation: the support set."""
    dtype: Literal["float32", "float64"] = "float32"
    test_queries: Count | None = settings.later(None)
    """Query images a class at evaluation, in validation and test; None: ``queries``. Batch norm
    takes the statistics of the whole query set, so their number is part of the protocol."""
    test_inner_batch: Count | None = settings.later(None)
    """Images of an inner step at evaluation; None: the support set."""
    reduction: Literal["mean", "flatten"] | None = settings.later(None)
    """How maps become features: averaged over space, or all of them. None: averaged where lam is
    the initial weights or a prior's centre and maps are downsampled by strides, else all."""
    prior_precision: Annotated[float, Field(gt=0)] = settings.later(2.0)
    """mu: the formulation "prior" adds mu/2 |theta - lam|^2 to the mean cross-entropy of the
    support set. 2 is that of iMAML's example."""
    train_ways: Annotated[int, Field(ge=2)] | None = settings.later(None)
    """Classes of a training episode, where the head is no part of lam (formulation
    "representation"); None: as ``ways``. ProtoNets are trained with more than they are tested."""

    metric: ClassVar[str] = "accuracy"
    goal: ClassVar[Literal["max", "min"]] = "max"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss", "nearest_neighbour")
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def images_per_class(self) -> int:
        """Images of every class of the data set; a class attribute where settings do not matter."""
        raise NotImplementedError

    context: Count = settings.later(100)
    """Context parameters of the formulation "context", which needs the four blocks."""
    context_block: Annotated[int, Field(ge=1, le=4)] = settings.later(3)
    """The block whose maps they scale and shift, after its batch norm."""
    unit_features: bool = settings.later(False)
    """Features z are scaled to length 1, as z / sqrt(|z|^2 + 1e-10), in the formulation
    "representation": a linear head is then one of cosines, as in Baseline++."""

    def __post_init__(self) -> None:
        if self.unit_features and self.formulation != "representation":
            raise SettingError(
                'unit_features = true needs formulation = "representation": with '
                f'"{self.formulation}" no head stands apart from lam'
            )
        if self.train_ways is not None and self.formulation != "representation":
            raise SettingError(
                f'train_ways = {self.train_ways} needs formulation = "representation": with '
                f'"{self.formulation}" lam has a head of {self.ways} ways'
            )
        for split in ("train", "test"):
            shots, queries = self.images_of(split)
            if shots + queries > self.images_per_class:
                given = split == "train" and self.train_shots is not None
                which = "train_shots" if given else "shots"
                given = split == "test" and self.test_queries is not None
                queried = "test_queries" if given else "queries"
                raise SettingError(
                    f"{which} = {shots} and {queried} = {queries} need "
                    f"{shots + queries} images a class; there are {self.images_per_class}"
                )

    def images_of(self, split: str) -> tuple[int, int]:
        """Support and query images a class in a split: training may differ from evaluation."""
        if split == "train":
            return self.train_shots or self.shots, self.queries
        return self.shots, self.test_queries or self.queries

    def ways_of(self, split: str) -> int:
        """Classes of an episode of a split."""
        return self.train_ways or self.ways if split == "train" else self.ways

    @property
    def offers(self) -> frozenset[str]:
        """Depends on where lam enters."""
        own = {"base_classes", "episodes"}
        if self.train_ways is None:
            own.add("module")
        if self.formulation == "init":
            return GRADIENTS | own | {"lam_is_initialisation", "head", "batch_norms"}
        if self.formulation == "representation" and self.whole_support:
            own |= {"embedding", "unit_embedding"} if self.unit_features else {"embedding"}
        if self.formulation == "context":
            own.add("context")
        return GRADIENTS | own | {"lam_in_inner_loss"}

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        own = dict(LACKS)
        if self.train_ways is not None:
            own["module"] = "heads of training and of test differ in size (train_ways)"
        if self.formulation != "representation":
            own["embedding"] = (
                f"lam has a head here (formulation = {self.formulation!r}); with 'representation' "
                "it makes features alone"
            )
        elif not self.whole_support:
            own["embedding"] = "an inner batch may lack classes (inner_batch, test_inner_batch)"
        own["unit_embedding"] = own.get(
            "embedding", "features have any length here; with unit_features = true they have 1"
        )
        if self.formulation == "init":
            own |= LACKS_OF_A_START
        elif self.formulation == "prior":
            own |= LACKS_OF_A_PRIOR
        elif self.formulation == "context":
            why = "theta is context parameters here (formulation = 'context')"
            own["lam_is_initialisation"] = f"{why}, which start at zero"
            own["head"] = f"{why}, and no head"
        else:
            why = "lam is a representation here (formulation = 'representation')"
            own["lam_is_initialisation"] = f"{why}, not the initial value of theta"
            own["head"] = f"{why}: theta is all head"
        return own

    @property
    def whole_support(self) -> bool:
        """Whether every inner batch is a whole support set."""
        return self.inner_batch is None and self.test_inner_batch is None

    @property
    def protocol(self) -> str:
        """How episodes of the test are made, which batch norm makes part of the result."""
        _, queries = self.images_of("test")
        return f"tested with {counted(queries, 'query image')} a class"

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The test split; a data set may add episodes that its authors fixed (:meth:`given`)."""
        return ("test",)

    @abstractmethod
    def classes(self, split: str) -> Classes:
        """The images of "train", "valid" or "test". Raises DataMissing."""

    def given(self) -> dict[str, list[GivenEpisode]]:
        """Further evaluations by name, their episodes fixed by the data set's authors."""
        return {}

    def network_for(self, channels: int, size: int) -> Network:
        """The network, for images [n, channels, size, size]."""
        return ConvNet(
            channels,
            size,
            self.ways,
            filters=self.filters,
            downsample=self.downsample,
            reduce=self.reduce,
            dtype=getattr(torch, self.dtype),
        )

    @property
    def reduce(self) -> Literal["mean", "flatten"] | None:
        """How maps become features; None: as the way of downsampling has it."""
        if self.reduction is not None:
            return self.reduction
        return "flatten" if self.formulation == "representation" else "mean"
