"""Slurm's commands: each with a time limit, in an environment of what is known to be needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metabench.cluster.profile import Profile, minutes
from metabench.core.errors import MetabenchError

SECONDS = 60.0
"""How long a command may take."""
_NEEDED = re.compile(
    r"METABENCH_\w+|SLURM_CONF|PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR"
    # How modules, environments and libraries are found.
    r"|MODULE(PATH|SHOME|RCFILE|S_CMD)|LMOD_\w+|LOADEDMODULES|_LMFILES_|BASH_ENV"
    r"|BASH_FUNC_(module|ml|_module_raw)(%%|\(\))"
    r"|VIRTUAL_ENV|(CONDA|MAMBA)_(PREFIX|DEFAULT_ENV|EXE|PYTHON_EXE|SHLVL|ROOT_PREFIX|ENVS_PATH)"
    r"|PYTHON(?!PATH$|STARTUP$)\w+|LD_LIBRARY_PATH|CUBLAS_WORKSPACE_CONFIG|MPLBACKEND|MPLCONFIGDIR"
    # Caches, never tokens.
    r"|XDG_\w+|TORCH_HOME|HF_(HOME|HUB_CACHE|DATASETS_CACHE|ASSETS_CACHE|XET_CACHE|ENDPOINT)"
    r"|HUGGINGFACE_HUB_CACHE|(PYTORCH_)?TRANSFORMERS_CACHE|(HF_HUB|HF_DATASETS|TRANSFORMERS)_OFFLINE"
    # How the network is reached.
    r"|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
)
"""Variables that jobs are known to need. Of all others nobody knows what they hold."""
_CREDENTIALS = re.compile(r"\w+://[^/]*@")


class SlurmError(MetabenchError):
    """What a Slurm command refused, in its own words."""


def needed(environ: Mapping[str, str], keep: Sequence[str] = ()) -> dict[str, str]:
    """What of an environment jobs need, and the variables in ``keep``: nothing of the launcher's
    own Slurm job, GPUs, thread counts and ranks, and no secret. An address with a password in it
    stays behind too."""
    return {
        name: value
        for name, value in environ.items()
        if name in keep or (_NEEDED.fullmatch(name) and not _CREDENTIALS.match(value))
    }


@dataclass(frozen=True)
class Partition:
    """What nodes of a partition have at most."""

    name: str
    cpus: int
    memory_gb: float
    gres: dict[str, int]
    """"gpu", "gpu:TYPE", "shard" ... to how many one node has."""
    minutes: int | None
    """None: unlimited."""
    up: bool


class Slurm:
    """The cluster that a profile means."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.env = needed(os.environ, profile.keep_env)
        self.absent = ""
        """A slurm.conf that was named and is not there."""
        if not self.env.get("SLURM_CONF") and profile.slurm_conf:
            given = Path(os.path.expanduser(os.path.expandvars(profile.slurm_conf)))
            if given.is_file():
                self.env["SLURM_CONF"] = str(given)
            else:
                self.absent = f"slurm_conf {profile.slurm_conf!r}: there is no such file"

    def run(
        self, *command: str, seconds: float = SECONDS, env: Mapping[str, str] | None = None
    ) -> str:
        """What a command prints, in the environment ``env`` (None: ``self.env``); raises SlurmError
        with what it said instead."""
        program = shutil.which(command[0], path=self.env.get("PATH"))
        hint = ""
        if self.profile.name == "local":
            starts = "python -m metabench.cluster_profiles.local_cluster up"
            hint = f"; start the one-machine cluster: {starts}"
        if program is None:
            raise SlurmError(f"{command[0]} is not here: is this a login node of a cluster?{hint}")
        conf = self.env.get("SLURM_CONF")
        if conf and not Path(conf).is_file():
            # Slurm's commands would look for it for a minute.
            raise SlurmError(f"SLURM_CONF={conf}: there is no such file{hint}")
        try:
            done = subprocess.run(
                [program, *command[1:]],
                env=self.env if env is None else env,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlurmError(f"{command[0]} said nothing for {seconds:g} s") from None
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
            text = f"{command[0]}: {_reason(said)}"
            if self.absent and "configuration" in text:
                text += f"; {self.absent}{hint}"
            raise SlurmError(text)
        return done.stdout

    def sbatch(self, script: Path, env: Mapping[str, str]) -> str:
        """Queue a script, whose jobs have the environment ``env``; the id of the job."""
        return self.run("sbatch", "--parsable", str(script), env=env).strip().partition(";")[0]

    def config(self) -> dict[str, str]:
        """The cluster's configuration as the controller tells it."""
        out = {}
        for line in self.run("scontrol", "show", "config").splitlines():
            name, equals, value = line.partition("=")
            if equals:
                out[name.strip()] = value.strip()
        return out

    def max_array(self) -> int:
        """Most tasks of an array."""
        if self.profile.max_array is not None:
            return self.profile.max_array
        # The key is one more than the highest index, and indices begin at 0.
        return max(1, int(self.config().get("MaxArraySize", "1001")))

    def partitions(self) -> list[Partition]:
        """Every partition, nodes of different kinds taken together by their largest."""
        out: dict[str, Partition] = {}
        default = ""
        for line in self.run("sinfo", "-h", "-e", "-o", "%P|%c|%m|%G|%l|%a").splitlines():
            name, cpus, memory, gres, limit, up = line.split("|")
            if name.endswith("*"):
                name = default = name[:-1]
            new = Partition(
                name,
                int(cpus.rstrip("+")),
                int(memory.rstrip("+")) / 1024,
                _gres(gres),
                None if limit == "infinite" else minutes(limit),
                up == "up",
            )
            old = out.get(name)
            if old is not None:
                most = {g: max(old.gres.get(g, 0), n) for g, n in new.gres.items()}
                new = Partition(
                    name,
                    max(old.cpus, new.cpus),
                    max(old.memory_gb, new.memory_gb),
                    {**old.gres, **most},
                    new.minutes,
                    new.up,
                )
            out[name] = new
        first = [out.pop(default)] if default in out else []
        return [*first, *out.values()]

    def named(self, name: str) -> dict[str, str]:
        """Jobs of mine called ``name``, array ids alone, to when they were submitted."""
        said = self.run("squeue", "--me", "-h", "--states=all", f"--name={name}", "-o", "%F|%V")
        return dict(line.split("|", 1) for line in said.splitlines() if line)


def _reason(said: str) -> str:
    """The last line of what a command said that tells why, without the command's own name."""
    lines = [line for line in said.splitlines() if not line.startswith("Try ")]
    return re.sub(r"^\S*?\w+: (error: |fatal: )?", "", (lines or [said])[-1])


def _gres(text: str) -> dict[str, int]:
    """ "gpu:a100:4(S:0-1),shard:8" as counts by name, and by name and type."""
    out: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        words = part.split(":")
        if len(words) < 2 or not words[-1].isdecimal():
            continue
        n = int(words[-1])
        out[words[0]] = out.get(words[0], 0) + n
        if len(words) == 3:
            kind = f"{words[0]}:{words[1]}"
            out[kind] = out.get(kind, 0) + n
    return out


def partition_of(profile: Profile, partitions: Sequence[Partition]) -> Partition | None:
    """The partition that a profile means, the cluster's default where it names none."""
    if profile.partition:
        return next((p for p in partitions if p.name == profile.partition), None)
    return partitions[0] if partitions else None


def beyond(profile: Profile, partitions: Sequence[Partition]) -> list[str]:
    """What a profile asks for and its partition does not have, in words."""
    found = partition_of(profile, partitions)
    if found is None and profile.partition:
        known = ", ".join(sorted(p.name for p in partitions))
        return [f"no partition {profile.partition!r}; the cluster has {known}"]
    if found is None:
        return ["the cluster shows no partition"]
    where = f"a node of partition {found.name}"
    out = []
    if not found.up:
        out.append(f"partition {found.name} is down")
    if profile.cpus * profile.tasks > found.cpus:
        each = f" for each of {profile.tasks} ranks" if profile.tasks > 1 else ""
        out.append(f"cpus {profile.cpus}{each}: {where} has {found.cpus}")
    if profile.memory_gb > found.memory_gb:
        out.append(f"memory_gb {profile.memory_gb:g}: {where} has {found.memory_gb:.1f}")
    if found.minutes is not None and profile.minutes > found.minutes:
        out.append(f"time {profile.minutes} min: partition {found.name} allows {found.minutes}")
    wanted = _gres(profile.gres) if profile.gres else {"gpu": profile.gpus}
    for name, n in wanted.items():
        has = found.gres.get(name, 0)
        if n > has:
            kinds = ", ".join(f"{g} {m}" for g, m in sorted(found.gres.items())) or "none"
            out.append(f"{name} {n}: {where} has {has} (in all: {kinds})")
    return out
