#!/usr/bin/env python3
"""A real Slurm on this machine: emulated nodes, fake GPUs, pre-emption, if wanted accounting.

    local_cluster.py install [--accounting]    Debian's packages (as root, once)
    local_cluster.py up [options]              start what is not running, wait until nodes are idle
    local_cluster.py status | env | down       look; print what to export; stop all of it
    local_cluster.py purge                     down, and remove the home

Everything lives under --home: nothing in /etc is read or written, no service is started, no
cgroup, container or shared file system is needed, and a home remembers its options. Several
clusters run side by side where homes and --base-port differ. Standard library only, in one file:
any Python runs it by its path, without an installation.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
DEFAULT_HOME = Path(
    os.environ.get("METABENCH_LOCAL_CLUSTER")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "metabench/local-cluster")
)

FOLDERS = ("etc", "run", "log", "state", "spool", "dev")
"""Of a home; with accounting ``sql``, too."""


class ClusterError(Exception):
    """What keeps the cluster from running, in words."""


@dataclass(frozen=True)
class Options:
    """What a cluster is like; nodes need not fit on the machine (``config_overrides``)."""

    nodes: int = 4
    cpus: int = 4
    """Per node."""
    mem: int = 4000
    """MB per node."""
    gpu_nodes: int = 2
    gpus: int = 2
    """Per node that has any."""
    shards: int = 4
    """Per GPU: parts in which jobs may share it."""
    base_port: int = 16817
    requeue_wait: int = 5
    """Seconds before a requeued job may start again; Slurm takes no less than 5."""
    kill_wait: int = 3
    """Seconds between SIGTERM and SIGKILL."""
    grace: int = 5
    """Seconds of warning before pre-emption."""
    slurmd_timeout: int = 8
    max_array: int = 1001
    accounting: bool = False

    def node_names(self) -> list[str]:
        """n1, n2, ..."""
        return [f"n{at}" for at in range(1, self.nodes + 1)]


HELP = {
    "nodes": "emulated nodes",
    "cpus": "CPUs a node (need not exist)",
    "mem": "MB a node (need not exist)",
    "gpu_nodes": "how many of the nodes have GPUs",
    "gpus": "fake GPUs on each of those",
    "shards": "parts of a GPU that jobs may share",
    "base_port": "first of the TCP ports used, on the loopback address",
    "requeue_wait": "seconds before a requeued job may start again (5 at least)",
    "kill_wait": "seconds between SIGTERM and SIGKILL",
    "grace": "seconds of warning before pre-emption",
    "slurmd_timeout": "seconds after which a silent node is down",
    "max_array": "MaxArraySize",
    "accounting": "slurmdbd and MariaDB too, so that sacct answers",
}

LIMITS: dict[str, tuple[int, int | None]] = {
    "gpu_nodes": (0, None),
    "gpus": (0, None),
    "grace": (0, None),
    "requeue_wait": (5, None),
    "base_port": (1024, 65000),
    "accounting": (0, None),
}
"""Least and greatest value of an option; of others at least 1."""

CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Daemons that this process has started itself, by pid: to be waited for when they end."""


class Daemon:
    """A process of the cluster, known by its pid together with its start time."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.note = home / "run" / f"{name}.json"
        self.output = home / "log" / f"{name}.out"

    def pid(self) -> int | None:
        """Of the live process, else None."""
        try:
            known = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return None
        alive = started(known["pid"])
        return int(known["pid"]) if alive and alive == known["started"] else None

    def start(self, command: list[str], env: dict[str, str]) -> None:
        """Start it in a session of its own, unless it runs."""
        if self.pid() is not None:
            return
        self.reap()
        with self.output.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd="/",
                start_new_session=True,
            )
        CHILDREN[process.pid] = process
        self.note.write_text(json.dumps({"pid": process.pid, "started": started(process.pid)}))

    def reap(self) -> None:
        """Wait for the process that this one started and somebody ended."""
        with contextlib.suppress(OSError, ValueError):
            process = CHILDREN.pop(json.loads(self.note.read_text())["pid"], None)
            if process is not None:
                process.wait()

    def stop(self, seconds: float = 15.0) -> None:
        """End it by its pid, gently first."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while self.pid() is not None and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.pid() is not None:
                os.kill(pid, signal.SIGKILL)
        self.reap()
        self.note.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The ends of its logs."""
        out = []
        for log in (self.output, self.output.with_suffix(".log")):
            if log.exists():
                lines = log.read_text(errors="replace").splitlines()[-15:]
                out.append("\n".join([f"--- {log}", *lines]))
        return "\n".join(out)


def started(pid: int) -> str | None:
    """The start time of a live process in the kernel's ticks; None for a dead or defunct one."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if rest[0] in "ZXx" else rest[19]


def program(name: str) -> str:
    """The path of a program; raises ClusterError with the way to get it."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise ClusterError(
            f"{name} is not installed; as root: {sys.executable} {__file__} install --accounting"
        )
    return found


def listening(port: int) -> bool:
    """Whether something answers on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(what: str, done: Callable[[], bool], seconds: float, *daemons: Daemon) -> None:
    """Wait for something that ``daemons`` bring about; raises ClusterError with their logs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and all(d.pid() is not None for d in daemons):
        if done():
            return
        time.sleep(0.1)
    words = "\n".join(d.last_words() for d in daemons)
    raise ClusterError(f"{what}: not there after {seconds:.0f} s, or died\n{words}")


class Cluster:
    """One cluster in one folder."""

    def __init__(self, home: Path, options: Options | None = None) -> None:
        self.home = home.absolute()
        self.conf = self.home / "etc" / "slurm.conf"
        self.options = options or self.remembered() or Options()
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": PATH}

    def remembered(self) -> Options | None:
        """The options that this home was brought up with."""
        try:
            return Options(**json.loads((self.home / "etc" / "options.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def daemon(self, name: str) -> Daemon:
        """One of munged, mariadbd, slurmdbd, slurmctld, slurmd-NODE."""
        return Daemon(self.home, name)

    def daemons(self) -> list[Daemon]:
        """Those that were started and not stopped, controller first, services last."""
        names = sorted(file.stem for file in (self.home / "run").glob("*.json"))
        last = ("slurmdbd", "mariadbd", "munged")
        first = [n for n in names if n == "slurmctld"]
        nodes = [n for n in names if n.startswith("slurmd-")]
        return [self.daemon(n) for n in (*first, *nodes, *(n for n in last if n in names))]

    def running(self) -> bool:
        """Whether any of it lives."""
        return any(d.pid() is not None for d in self.daemons())

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A Slurm command on this cluster; raises ClusterError after a minute without an answer."""
        try:
            return subprocess.run(
                [program(command[0]), *command[1:]],
                env=self.env,
                text=True,
                capture_output=True,
                check=False,
                timeout=60,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{' '.join(command)} gave no answer in a minute") from None

    # what it is made of

    def up(self) -> None:
        """Start whatever does not run, and wait until every node takes jobs."""
        port = self.options.base_port
        if self.daemon("slurmctld").pid() is None and listening(port):
            raise ClusterError(f"port {port} is taken, by another cluster perhaps: --base-port")
        try:
            for name in FOLDERS:
                folder = self.home / name
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o755)
            self.write_configuration()
        except OSError as error:
            raise ClusterError(f"cannot write {error.filename}: {error.strerror}") from None
        self.start_munge()
        if self.options.accounting:
            self.start_accounting()
        controller = self.daemon("slurmctld")
        controller.start([program("slurmctld"), "-D", "-f", str(self.conf)], self.env)
        until("slurmctld", lambda: listening(self.options.base_port), 20, controller)
        nodes = self.options.node_names()
        for node in nodes:
            self.start_node(node)
        # A test, or an administrator, may have left some down.
        self.ask("scontrol", "update", f"nodename={','.join(nodes)}", "state=resume")
        until(
            "nodes", self.nodes_ready, 40, controller, *(self.daemon(f"slurmd-{n}") for n in nodes)
        )

    def start_node(self, node: str) -> None:
        """Start the daemon of one node, unless it runs."""
        (self.home / "spool" / node).mkdir(exist_ok=True)
        command = [program("slurmd"), "-D", "-N", node, "-f", str(self.conf)]
        self.daemon(f"slurmd-{node}").start(command, self.env)

    def nodes_ready(self) -> bool:
        """Whether every node is idle or at work."""
        said = self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t").stdout
        states = dict(line.split() for line in said.splitlines() if line.strip())
        good = {"idle", "mix", "alloc", "comp"}
        return len(states) == self.options.nodes and set(states.values()) <= good

    def start_munge(self) -> None:
        """munged with a key and a socket of its own."""
        key = self.home / "etc" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
        munged = self.daemon("munged")
        sock = self.home / "run" / "munge.socket"
        if munged.pid() is None:
            sock.unlink(missing_ok=True)
        run = self.home / "run"
        munged.start(
            [
                program("munged"),
                "--foreground",
                "--force",
                f"--key-file={key}",
                f"--socket={sock}",
                f"--pid-file={run}/munged.pid",
                f"--log-file={self.home}/log/munged.log",
                f"--seed-file={run}/munged.seed",
            ],
            self.env,
        )
        until("munged", sock.exists, 10, munged)

    def start_accounting(self) -> None:
        """MariaDB with its data here, a database, and slurmdbd."""
        port, user = self.options.base_port + 2, getpass.getuser()
        data, sock = self.home / "sql", self.home / "run" / "sql.socket"
        if not (data / "mysql").exists():
            self.checked(
                program("mariadb-install-db"),
                "--no-defaults",
                f"--datadir={data}",
                f"--user={user}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            )
        server = self.daemon("mariadbd")
        server.start(
            [
                program("mariadbd"),
                "--no-defaults",
                f"--datadir={data}",
                f"--user={user}",
                f"--socket={sock}",
                f"--port={port}",
                "--bind-address=127.0.0.1",
                f"--pid-file={self.home}/run/mariadbd.pid",
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=16M",
                "--innodb-lock-wait-timeout=900",
                "--innodb-flush-log-at-trx-commit=0",
                "--skip-log-bin",
                "--performance-schema=OFF",
            ],
            self.env,
        )
        until("mariadbd", lambda: listening(port), 40, server)
        people = [f"slurm@{host}" for host in ("127.0.0.1", "localhost")]
        self.checked(
            program("mariadb"),
            "--no-defaults",
            f"--socket={sock}",
            "-uroot",
            "-e",
            "CREATE DATABASE IF NOT EXISTS slurm_acct; "
            + "".join(f"CREATE USER IF NOT EXISTS {p} IDENTIFIED BY 'slurm'; " for p in people)
            + "".join(f"GRANT ALL ON slurm_acct.* TO {p}; " for p in people),
        )
        database = self.daemon("slurmdbd")
        database.start([program("slurmdbd"), "-D"], self.env)
        until("slurmdbd", lambda: listening(self.options.base_port + 1), 30, database)

    def checked(self, *command: str) -> None:
        """Run a program to its end; raises ClusterError with what it said."""
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, check=False)
        if done.returncode:
            raise ClusterError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")

    # configuration

    def write_configuration(self) -> None:
        """Every configuration file; slurmdbd insists on 0600 for its own."""
        etc = self.home / "etc"
        files = {
            "slurm.conf": self.slurm_conf(),
            "gres.conf": self.gres_conf(),
            "cgroup.conf": "CgroupAutomount=no\n",
            "plugstack.conf": "",
            "slurmdbd.conf": self.slurmdbd_conf(),
            "options.json": json.dumps(asdict(self.options), indent=1) + "\n",
        }
        for name, text in files.items():
            target = etc / name
            target.touch()
            target.chmod(0o600 if name == "slurmdbd.conf" else 0o644)
            target.write_text(text)

    def gpu_nodes(self) -> list[str]:
        """Names of the nodes with GPUs."""
        o = self.options
        return o.node_names()[: o.gpu_nodes] if o.gpus else []

    def slurm_conf(self) -> str:
        """slurm.conf. Unknown keys stop every daemon and every client."""
        parts = (self.conf_daemons(), self.conf_rules(), self.conf_nodes(), self.conf_accounting())
        return "\n".join(line for part in parts for line in part) + "\n"

    def conf_daemons(self) -> list[str]:
        """Of slurm.conf, who runs, where files are, and how daemons know each other."""
        o, home = self.options, self.home
        return [
            "ClusterName=metabench",
            f"SlurmctldHost={socket.gethostname()}(127.0.0.1)",
            f"SlurmctldPort={o.base_port}",
            f"SlurmUser={getpass.getuser()}",
            f"SlurmdUser={getpass.getuser()}",
            f"StateSaveLocation={home}/state",
            f"SlurmdSpoolDir={home}/spool/%n",
            f"SlurmctldPidFile={home}/run/slurmctld.pid",
            f"SlurmdPidFile={home}/run/slurmd-%n.pid",
            f"SlurmctldLogFile={home}/log/slurmctld.log",
            f"SlurmdLogFile={home}/log/slurmd-%n.log",
            "SlurmctldDebug=info",
            "SlurmdDebug=info",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            "# cred_expire is also how long a requeued job waits.",
            f"AuthInfo=socket={home}/run/munge.socket,cred_expire={o.requeue_wait}",
        ]

    def conf_rules(self) -> list[str]:
        """Of slurm.conf, how jobs are scheduled, signalled, ended and counted."""
        o = self.options
        return [
            "# No cgroups: memory limits are not enforced, CPUs not bound, GPUs not hidden.",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            f"JobAcctGatherType=jobacct_gather/{'linux' if o.accounting else 'none'}",
            "JobAcctGatherFrequency=task=2",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SlurmctldTimeout=10",
            f"SlurmdTimeout={o.slurmd_timeout}",
            "MessageTimeout=10",
            "TCPTimeout=2",
            "InactiveLimit=0",
            f"KillWait={o.kill_wait}",
            "OverTimeLimit=0",
            "UnkillableStepTimeout=30",
            "BatchStartTimeout=10",
            "MinJobAge=3600",
            "WaitTime=0",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=5,"
            "bf_interval=2",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "# Without it the first job takes all the memory of its node.",
            "DefMemPerCPU=64",
            "PriorityType=priority/basic",
            "JobRequeue=1",
            f"MaxArraySize={o.max_array}",
            "MaxJobCount=20000",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "SlurmctldParameters=preempt_send_user_signal",
            "SlurmdParameters=config_overrides",
            "# 1: a node that was silent comes back by itself, one that was set down stays down.",
            "ReturnToService=1",
            "GresTypes=gpu,shard",
        ]

    def conf_nodes(self) -> list[str]:
        """Of slurm.conf, nodes and partitions."""
        o, host, lines = self.options, socket.gethostname(), []
        for at, node in enumerate(o.node_names()):
            gres = f" Gres=gpu:fake:{o.gpus},shard:{o.gpus * o.shards}"
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 "
                f"Port={o.base_port + 10 + at} CPUs={o.cpus} Boards=1 SocketsPerBoard=1 "
                f"CoresPerSocket={o.cpus} ThreadsPerCore=1 RealMemory={o.mem}"
                + (gres if node in self.gpu_nodes() else "")
                + " State=UNKNOWN"
            )
        common = "Nodes=ALL MaxTime=60 DefaultTime=15 State=UP"
        return [
            *lines,
            f"PartitionName=main {common} Default=YES PriorityTier=1 PreemptMode=OFF",
            f"PartitionName=low {common} PriorityTier=1 PreemptMode=REQUEUE GraceTime={o.grace}",
            f"PartitionName=high {common} PriorityTier=10 PreemptMode=OFF",
        ]

    def conf_accounting(self) -> list[str]:
        """Of slurm.conf, where jobs are remembered."""
        if not self.options.accounting:
            return ["AccountingStorageType=accounting_storage/none"]
        return [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={self.options.base_port + 1}",
            "AccountingStorageTRES=gres/gpu",
            "# With munge the password is the path of its socket.",
            f"AccountingStoragePass={self.home}/run/munge.socket",
        ]

    def gres_conf(self) -> str:
        """gres.conf, and the devices that it names: a GPU without a file counts as none."""
        o, lines = self.options, ["AutoDetect=off"]
        for node in self.gpu_nodes():
            for at in range(o.gpus):
                device = self.home / "dev" / f"{node}-gpu{at}"
                if not device.exists():
                    try:  # a second /dev/null
                        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
                    except PermissionError:  # not root: a plain file does, with a complaint
                        device.touch()
            last = f"[0-{o.gpus - 1}]" if o.gpus > 1 else "0"
            lines += [
                f"NodeName={node} Name=gpu Type=fake File={self.home}/dev/{node}-gpu{last}",
                f"NodeName={node} Name=shard Count={o.gpus * o.shards}",
            ]
        return "\n".join(lines) + "\n"

    def slurmdbd_conf(self) -> str:
        """slurmdbd.conf."""
        o, home = self.options, self.home
        return "\n".join(
            [
                "AuthType=auth/munge",
                f"AuthInfo=socket={home}/run/munge.socket",
                "DbdHost=localhost",
                "DbdAddr=127.0.0.1",
                f"DbdPort={o.base_port + 1}",
                f"SlurmUser={getpass.getuser()}",
                f"PidFile={home}/run/slurmdbd.pid",
                f"LogFile={home}/log/slurmdbd.log",
                "DebugLevel=info",
                "StorageType=accounting_storage/mysql",
                "StorageHost=127.0.0.1",
                f"StoragePort={o.base_port + 2}",
                "StorageUser=slurm",
                "StoragePass=slurm",
                "StorageLoc=slurm_acct",
                "CommitDelay=1",
                "",
            ]
        )

    # ending it

    def down(self) -> None:
        """Cancel every job, then stop every daemon, by pid."""
        if self.daemon("slurmctld").pid() is not None:
            with contextlib.suppress(ClusterError):
                self.ask("scancel", "--full", "-u", getpass.getuser())
                deadline = time.monotonic() + 12
                while time.monotonic() < deadline and self.ask("squeue", "-h").stdout.strip():
                    time.sleep(0.2)
        for daemon in self.daemons():
            daemon.stop()

    def purge(self) -> None:
        """Down, and remove what is this cluster's in its home; raises ClusterError for a folder
        that is no home."""
        if self.home.exists() and self.remembered() is None:
            raise ClusterError(f"{self.home} is no home of a cluster: nothing was removed")
        self.down()
        for name in (*FOLDERS, "sql"):
            shutil.rmtree(self.home / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # something else is in it
            self.home.rmdir()

    def describe(self) -> Iterator[str]:
        """Daemons, nodes and jobs, a line each."""
        for daemon in self.daemons():
            yield f"{daemon.name:<14} {daemon.pid() or 'gone'}"
        if self.daemon("slurmctld").pid() is not None:
            yield from self.ask("sinfo", "-N", "-o", "%.6N %.10P %.8t %.5c %.8m %G").stdout.split(
                "\n"
            )
            yield from self.ask("squeue").stdout.split("\n")
        else:
            yield f"no cluster runs in {self.home}"


@contextlib.contextmanager
def running(home: Path, options: Options) -> Iterator[Cluster]:
    """A cluster that is up inside, and gone afterwards."""
    cluster = Cluster(home, options)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def missing_packages(accounting: bool) -> list[str]:
    """Debian packages that are not installed."""
    wanted = [*PACKAGES, *(ACCOUNTING_PACKAGES if accounting else ())]
    asked = ["dpkg-query", "-W", "-f=${Package} ${Status}\n", *wanted]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return [p for p in wanted if f"{p} install ok installed" not in said.splitlines()]


def install(accounting: bool) -> None:
    """Install what is missing with apt-get; raises ClusterError."""
    if shutil.which("apt-get") is None:
        raise ClusterError(
            "there is no apt-get here; install slurmctld, slurmd, the client commands and munge "
            "the way your system does" + (", and slurmdbd with MariaDB" if accounting else "")
        )
    missing = missing_packages(accounting)
    if not missing:
        print("every package is there", file=sys.stderr)
        return
    # The cluster starts daemons of its own: none of the packages' services is wanted.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    print(f"installed {', '.join(missing)}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ("install", "up", "status", "env", "down", "purge")
    out.add_argument("command", choices=commands)
    out.add_argument("--home", type=Path, default=DEFAULT_HOME, help=f"default: {DEFAULT_HOME}")
    for field in fields(Options):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "accounting":
            out.add_argument(flag, action="store_true", default=None, help=HELP[field.name])
        else:
            text = f"{HELP[field.name]} ({field.default})"
            out.add_argument(flag, type=int, default=None, help=text)
    return out


def main(words: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = parser().parse_args(words)
    cluster = Cluster(given.home)
    try:
        if given.command == "install":
            install(bool(given.accounting))
        elif given.command == "up":
            start = time.monotonic()
            ran = cluster.running()
            cluster = Cluster(given.home, chosen(cluster, vars(given)))
            try:
                cluster.up()
            except ClusterError:
                if not ran:
                    cluster.down()
                raise
            print(f"up in {time.monotonic() - start:.1f} s", file=sys.stderr)
        elif given.command == "status":
            print("\n".join(cluster.describe()).rstrip())
        elif given.command == "down":
            cluster.down()
        elif given.command == "purge":
            cluster.purge()
        if given.command in ("up", "env"):
            print(f"export SLURM_CONF={cluster.conf}")
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def chosen(cluster: Cluster, given: dict[str, Any]) -> Options:
    """The options typed, over those that the home remembers; raises ClusterError where a running
    cluster would have to change."""
    typed = {f.name: given[f.name] for f in fields(Options) if given[f.name] is not None}
    for name, value in typed.items():
        least, most = LIMITS.get(name, (1, None))
        if value < least or (most is not None and value > most):
            flag = "--" + name.replace("_", "-")
            upto = f" to {most}" if most is not None else " or more"
            raise ClusterError(f"{flag} cannot be {value}: {least}{upto}")
    options = Options(**{**asdict(cluster.remembered() or Options()), **typed})
    if cluster.running() and options != cluster.remembered():
        raise ClusterError(f"a cluster with other options runs in {cluster.home}: down first")
    return options


if __name__ == "__main__":
    sys.exit(main())
