"""Which processes are one run's, and whether they are all on this machine."""

import pytest

from foura import distributed
from foura.errors import UserError

VARIABLES = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
VARIABLES += ("SLURM_STEP_NUM_NODES", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "FOURA_MEETING")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "1", "WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables as the program that starts processes does, and no others."""
    for name in (*VARIABLES, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is as it was after the test
        monkeypatch.delenv(name)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "alone"),
    [
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, True),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, False),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "1"}, True),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "2"}, False),
        (SRUN, False),  # it is not known
    ],
)
def test_all_processes_on_one_machine_are_seen(variables, alone, environment) -> None:
    environment(**variables)
    assert distributed.started() and (distributed.rank(), distributed.world_size()) == (1, 4)
    assert distributed.on_one_machine() is alone


def test_srun_has_to_be_told_how_many_processes_a_node_has(environment) -> None:
    environment(**SRUN, SLURM_STEP_NUM_NODES="1", SLURM_NTASKS="4")
    with pytest.raises(UserError, match="--ntasks-per-node=4"):
        distributed.init_process_group()
