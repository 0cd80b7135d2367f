"""Launchers by what they would submit; the Slurm script is run, with a stand-in for srun and scontrol."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scripts import launch_kubernetes, launch_slurm, launch_tpu_vm, launching
from vla_jax.core import cluster, errors

RECIPE, RUN = "recipes/pi0_droid.py:paper", "/data/runs/pi 0"
_WAIT_S = 60

# Runs what follows its options, as one task; ends as the task does.
SRUN = """#!/bin/bash
echo "srun $*" >> "$LOG"
trap 'echo "task got SIGTERM" >> "$LOG"; exit ${AFTER_TERM:-0}' TERM
echo started >> "$LOG"
for i in $(seq ${TICKS:-0}); do sleep 0.05; done
exit ${STATUS:-0}
"""
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> "$LOG"\n'


@pytest.fixture
def stand_ins(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def batch(folder, **environment) -> subprocess.Popen:
    script = folder / "job.sh"
    script.write_text(launch_slurm.render(launch_slurm.Slurm(RECIPE, RUN, nodes=2)))
    path = f"{folder}:{os.environ['PATH']}"
    environment = dict(os.environ, PATH=path, LOG=str(folder / "log"), SLURM_JOB_ID="42", **environment)
    return subprocess.Popen(["bash", str(script)], env=environment)


def log(folder) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(line, folder) -> None:
    deadline = time.monotonic() + _WAIT_S
    while line not in log(folder):
        assert time.monotonic() < deadline, log(folder)
        time.sleep(0.02)


def test_the_slurm_script_asks_for_its_nodes_and_quotes_its_command():
    options = launch_slurm.Slurm(RECIPE, RUN, nodes=4, gpus_per_node=8, partition="long", overrides=("--fit.seed=3",))
    script = launch_slurm.render(options)
    for line in ("--nodes=4", "--gpus-per-node=8", "--partition=long", "--requeue", "--signal=B:TERM@120"):
        assert f"#SBATCH {line}\n" in script
    assert "--account" not in script
    assert f"srun --kill-on-bad-exit=1 vla-jax train {RECIPE} --run '{RUN}' --fit.seed=3 &\n" in script


def test_a_finished_slurm_job_is_not_requeued(stand_ins):
    assert batch(stand_ins).wait(_WAIT_S) == 0
    assert log(stand_ins) == [f"srun --kill-on-bad-exit=1 vla-jax train {RECIPE} --run {RUN}", "started"]


def test_a_preempted_slurm_job_hands_the_signal_on_and_is_requeued(stand_ins):
    job = batch(stand_ins, TICKS="600")
    wait_for("started", stand_ins)
    job.send_signal(signal.SIGTERM)
    assert job.wait(_WAIT_S) == 0
    assert log(stand_ins)[2:] == ["task got SIGTERM", "scontrol requeue 42"]


@pytest.mark.parametrize("environment", [{"STATUS": "3"}, {"TICKS": "600", "AFTER_TERM": "5"}])
def test_a_failed_slurm_job_keeps_its_status_and_is_not_requeued(stand_ins, environment):
    job = batch(stand_ins, **environment)
    wait_for("started", stand_ins)
    if "AFTER_TERM" in environment:
        job.send_signal(signal.SIGTERM)
    assert job.wait(_WAIT_S) == int(environment.get("STATUS", environment.get("AFTER_TERM")))
    assert not any(line.startswith("scontrol") for line in log(stand_ins))


def kubernetes(**changes):
    return launch_kubernetes.Kubernetes(RECIPE, RUN, image="registry/vla:1", name="pi0", **changes)


def test_a_jobset_tells_every_pod_who_it_is():
    jobset = launch_kubernetes.render(kubernetes(hosts=2, gpus=8, claim="disk"))
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (2, 2, "Indexed")
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["vla-jax", "train", RECIPE, "--run", RUN]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    # What Kubernetes would put into pod 1 is what the training process understands.
    values = {entry["name"]: entry.get("value", "1") for entry in container["env"]}
    found = cluster.detect(values)
    assert (found.coordinator, found.num_processes, found.process_id) == ("pi0-worker-0-0.pi0:1234", 2, 1)


def test_a_jobset_on_tpus_asks_for_the_slice_and_leaves_the_rest_to_gke():
    options = kubernetes(hosts=64, tpus=4, tpu_accelerator="tpu-v5-lite-podslice", tpu_topology="16x16")
    pod = launch_kubernetes.render(options)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
    assert pod["containers"][0]["env"] == []


def test_chips_without_a_slice_are_refused():
    with pytest.raises(errors.ConfigError, match="--tpu-accelerator"):
        kubernetes(tpus=4)
    with pytest.raises(errors.ConfigError, match="one of them"):
        kubernetes(tpus=4, gpus=8, tpu_accelerator="a", tpu_topology="4x4")


def test_a_tpu_slice_is_made_then_filled_then_started():
    options = launch_tpu_vm.TpuVm(
        RECIPE, RUN, zone="z", accelerator="v5litepod-256", source="gs://b/s.tar.gz", name="pi0", spot=True
    )
    create, install, start = launch_tpu_vm.render(options)
    assert create[4:6] == ("create", "pi0") and "--spot" in create
    assert create[create.index("--version") + 1] == "v2-alpha-tpuv5-lite"
    assert "--worker=all" in install and "pip install" in install[-1]
    # The command stands inside two shells; the second has to see the run's folder as one word.
    echoed = start[-1].replace("tmux kill-session -t train 2>/dev/null; tmux new-session -d -s train", "echo")
    inner = subprocess.run(["bash", "-c", echoed], capture_output=True, text=True, timeout=_WAIT_S, check=True).stdout
    assert f"vla-jax train {RECIPE} --run '{RUN}' >> $HOME/train.log" in inner


def test_a_dry_run_prints_and_starts_nothing(capsys):
    launching.submit(("no-such-program",), "text", dry_run=True)
    assert capsys.readouterr().out == "# no-such-program\ntext\n"
    with pytest.raises(errors.TrainingError, match="could not submit with no-such-program"):
        launching.submit(("no-such-program",), "text", dry_run=False)


def test_the_command_line_prints_a_manifest_that_is_json():
    command = [sys.executable, "-m", "scripts.launch_kubernetes", RECIPE, RUN, "--image", "i", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WAIT_S, check=True)
    head, _, body = done.stdout.partition("\n")
    assert head == "# kubectl apply -f -"
    assert json.loads(body)["kind"] == "JobSet"


@pytest.mark.parametrize("name", ["Upper", "two words", "", "a" * 60])
def test_names_that_no_scheduler_takes_are_refused(name):
    with pytest.raises(errors.ConfigError, match="--name"):
        launching.Job(RECIPE, RUN, name)
