import pytest

from vla_jax.core import cluster, errors

SAID = {"VLA_JAX_COORDINATOR": "10.0.0.1:1234", "VLA_JAX_NUM_PROCESSES": "4", "VLA_JAX_PROCESS_ID": "2"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize("environment", [{}, {"HOME": "/root"}, {"TPU_WORKER_HOSTNAMES": "localhost"}])
def test_a_process_without_a_launcher_is_alone(environment):
    assert cluster.detect(environment) is None


def test_what_is_said_outright_comes_first():
    found = cluster.detect(SAID | SRUN)
    assert (found.launcher, found.coordinator, found.num_processes, found.process_id) == (
        "environment",
        "10.0.0.1:1234",
        4,
        2,
    )


def test_srun_and_tpu_slices_are_left_to_jax():
    assert cluster.detect(SRUN) == cluster.Cluster("slurm")
    assert cluster.detect({"TPU_WORKER_HOSTNAMES": "a,b"}) == cluster.Cluster("tpu")
    assert cluster.detect(SRUN | {"VLA_JAX_HEARTBEAT_SECONDS": "10"}).heartbeat_seconds == 10


def test_the_batch_script_of_slurm_is_no_rank():
    # sbatch sets SLURM_NTASKS for the script too; a process that joined from there would wait for ever.
    assert cluster.detect({name: value for name, value in SRUN.items() if name != "SLURM_PROCID"}) is None
    assert cluster.detect(SRUN | {"SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize("left_out", SAID)
def test_half_a_cluster_is_refused(left_out):
    with pytest.raises(errors.ConfigError, match=left_out):
        cluster.detect({name: value for name, value in SAID.items() if name != left_out})


def test_a_process_number_beyond_the_count_is_refused():
    with pytest.raises(errors.ConfigError, match="below VLA_JAX_NUM_PROCESSES=4"):
        cluster.detect(SAID | {"VLA_JAX_PROCESS_ID": "4"})
