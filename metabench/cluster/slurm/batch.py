"""The batch script of one array of jobs, as submitit writes it, and what it does at the end."""

from __future__ import annotations

import shlex
from pathlib import Path

from metabench.cluster.profile import Profile
from metabench.cluster.submission import STATUSES

CRASHES = 3
"""How often a job that dies without a word of its own is started again."""


def script(
    profile: Profile,
    command: str,
    folder: Path,
    name: str,
    minutes: int,
    memory_gb: float,
    parallel: int,
    teardown: list[str],
    comment: str,
    size: int = 1,
) -> str:
    """An sbatch file of ``size`` jobs that asks for what a profile says and runs ``command``.

    What jobs work on is in the words of the command: Slurm keeps the script, and a pickle in a
    shared folder would run whatever those who can write there put into it.
    """
    import submitit

    # It need not have srun: a script is written, and submitit starts nothing.
    kind = type("Writer", (submitit.SlurmExecutor,), {"affinity": classmethod(lambda _: 2)})
    made = kind(folder)
    extra = {"requeue" if profile.requeue else "no-requeue": True, **profile.extra}
    named = ("partition", "account", "qos", "constraint", "gres")
    made.update_parameters(
        job_name=name,
        time=minutes,
        # To Slurm 0 means all that the node has.
        mem=f"{max(1, round(memory_gb * 1024))}M",
        cpus_per_task=profile.cpus,
        signal_delay_s=profile.signal_seconds,
        array_parallelism=parallel,
        setup=profile.setup or None,
        teardown=teardown or None,
        # From 22.05 to 23.11 srun does not inherit it from sbatch.
        srun_args=[
            f"--ntasks={profile.ranks}",
            f"--cpus-per-task={profile.cpus}",
            # Without one of its ranks a job can do nothing: it dies, and its batch script begins
            # it again.
            *(["--kill-on-bad-exit=1"] if profile.ranks > 1 else []),
            *profile.srun_args,
        ],
        nodes=profile.nodes,
        # On a node of its own (exclusive) srun would start a task a core.
        ntasks_per_node=profile.tasks,
        additional_parameters=extra,
        comment=comment,
        **{key: value for key in named if (value := getattr(profile, key))},
        **({"gpus_per_node": profile.gpus} if profile.gpus else {}),
    )
    if size > 1:
        made.parameters["map_count"] = size
    text: str = made._make_submission_file_text(command, "")
    return text


def teardown_lines(folder: Path) -> list[str]:
    """What the batch script does after a job that died without a word: once more, a few times. A
    cancelled job is no longer RUNNING, and is left alone."""
    crashes = shlex.quote(str(folder / STATUSES))
    return [
        "code=$?",
        "case $code in 0|3|126|127) exit $code ;; esac",
        f"crashes={crashes}/"
        "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}.crashes",
        # What cannot be counted, on a full disk, is not tried again for ever.
        'if echo "$code on $SLURMD_NODENAME" >> "$crashes" &&',
        f'  [ "$(wc -l < "$crashes")" -le {CRASHES} ] &&',
        '  scontrol show job "$SLURM_JOB_ID" | grep -q "JobState=RUNNING"; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        "exit $code",
    ]
