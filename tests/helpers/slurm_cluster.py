"""A Slurm of one node on this machine, from Debian's packages: made in a folder, gone afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.helpers.network import free_ports
from tests.helpers.waiting import wait_until

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONF = """
ClusterName=foura
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=15
OverTimeLimit=0
SchedulerParameters=requeue_delay=1,sched_interval=5,bf_interval=5
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=normal Nodes=one Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=one MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
# submitit asks sacct how its jobs are, which needs a database that a cluster of one node does not have
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
scontrol --oneliner show job | sed -nE \\
    -e 's/^JobId=[0-9]+ ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) .*JobState=([A-Z_]+) .*/\\1_\\2|\\3|one/p' \\
    -e 's/^JobId=([0-9]+) JobName=.*JobState=([A-Z_]+) .*/\\1|\\2|one/p'
"""


def missing() -> str | None:
    """Why there can be no Slurm here, None where it is there or was installed just now."""
    if _found():
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"Slurm is not installed, and only root can install it: apt-get install {' '.join(PACKAGES)}"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"apt-get {command[0]} failed: {done.stderr.strip()[-300:]}"
    return None if _found() else "apt-get installed Slurm, and its daemons are not there"


def _found() -> bool:
    return all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in PROGRAMS)


class Slurm:
    """A controller, a node of two CPUs, and what authenticates them, each a child of this process.

    Attributes:
        env: what a command needs in its environment to speak to this cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        folder.chmod(0o755)
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        self.conf = folder / "slurm.conf"
        controller, daemon = free_ports(2)
        host = socket.gethostname().partition(".")[0]
        self.conf.write_text(CONF.format(folder=folder, host=host, controller=controller, daemon=daemon))
        (folder / "bin" / "sacct").write_text(SACCT)
        (folder / "bin" / "sacct").chmod(0o755)
        # our sacct before theirs, and this python for the scripts that say `python`
        path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": path}

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / place}" for name, place in places.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *options)
        wait_until((self.folder / "munge.socket").exists, f"munged; {self.folder}/*.out")
        self._daemon("slurmctld", "-D", "-i", "-f", str(self.conf))
        self._daemon("slurmd", "-D", "-f", str(self.conf))
        idle = ("sinfo", "-h", "-p", "normal", "-o", "%t")
        wait_until(lambda: self.ask(*idle) == "idle", f"the node to be idle; {self.folder}/*.out")

    def stop(self) -> None:
        """End the jobs, then the daemons."""
        self.ask("scancel", "--user=root", "--full")
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def jobs(self) -> dict[str, str]:
        """{job id: state} of every job in the queue."""
        return dict(line.split() for line in self.ask("squeue", "-h", "-r", "-o", "%i %T").splitlines())

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("w")
        with_us = ("setpriv", "--pdeathsig", "TERM", *command)  # so that they end with the tests, however those end
        self.daemons.append(subprocess.Popen(with_us, env=self.env, stdout=log, stderr=log, start_new_session=True))
