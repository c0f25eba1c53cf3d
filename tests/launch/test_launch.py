"""The launchers of processes, on this machine and under SLURM (with a stand-in for srun)."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_ins import environment, executable, run

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TOOLS = Path(sys.executable).parent

# In the place of slam_jax.main: writes down how it was started, then does what the config's name
# says.
MAIN = """
import json, os, signal, sys, time
rank = os.environ.get("JAX_PROCESS_ID", "alone")
asked, give_up = [], time.monotonic() + 60
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
json.dump([sys.argv[1:], dict(os.environ)], open(f"started_{rank}.part", "w"))
os.rename(f"started_{rank}.part", f"started_{rank}")
print("process", rank, "speaks")
config = sys.argv[sys.argv.index("--config") + 1]
if config == "fails" and rank == "1":
    sys.exit("error: broken on purpose")
while config != "ends" and time.monotonic() < give_up:
    time.sleep(0.01)
    if asked and config == "trains":
        time.sleep(0.4)  # a second signal would come by then
        open(f"asked_{rank}", "w").write(repr(asked))
        sys.exit(130)
"""


@pytest.fixture
def repository(tmp_path):
    """A copy with what launch/local.sh needs, and MAIN in the place of slam_jax.main."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "Makefile").write_text(".venv/installed:\n\t@true\n")
    executable(tmp_path / ".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "slam_jax").mkdir()
    (tmp_path / "slam_jax/__init__.py").touch()
    (tmp_path / "slam_jax/main.py").write_text(MAIN)
    return tmp_path


def started(folder, rank):
    return json.loads((folder / f"started_{rank}").read_text())


def test_scripts_and_dockerfile_pass_their_linters():
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
    assert len(scripts) == 3 and all(os.access(script, os.X_OK) for script in LAUNCH.glob("*.sh"))
    for command in ([TOOLS / "shellcheck", *scripts], [TOOLS / "hadolint", LAUNCH / "Dockerfile"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stdout, done.stdout


def test_local_starts_one_process_with_the_arguments_as_they_are(repository):
    done = run(repository, "launch/local.sh", "ends", "--config.a=(1, 2)", "--resume")
    assert done.returncode == 0 and done.stdout == "process alone speaks\n"
    arguments, _ = started(repository, "alone")
    assert arguments == ["--config", "ends", "--config.a=(1, 2)", "--resume"]


def test_local_starts_processes_that_find_each_other(repository):
    command = ("launch/local.sh", "--processes", "2", "ends", "--config.a=(1, 2)")
    done = run(repository, *command, CUDA_VISIBLE_DEVICES="4,5,6,7")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "process 0 speaks\n"
    log = re.search(r"process 1 writes to (.*)", done.stderr)[1]
    assert Path(log).read_text() == "process 1 speaks\n"
    addresses = set()
    for rank in "01":
        arguments, env = started(repository, rank)
        assert arguments == ["--distributed", "--config", "ends", "--config.a=(1, 2)"]
        assert (env["JAX_PROCESS_ID"], env["JAX_NUM_PROCESSES"]) == (rank, "2")
        assert env["CUDA_VISIBLE_DEVICES"] == {"0": "4,5", "1": "6,7"}[rank]
        addresses.add(env["JAX_COORDINATOR_ADDRESS"])
    (address,) = addresses
    assert re.fullmatch(r"localhost:\d{4,5}", address)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--processes", "two", "ends"), "expected launch/local.sh --processes N CONFIG"),
        (("--processes", "2"), "expected launch/local.sh --processes N CONFIG"),
        (("--processes", "2", "ends"), "2 processes cannot share 3 GPUs equally"),
    ],
)
def test_local_refuses_in_one_line(repository, arguments, line):
    gpus = "\n".join(f"GPU {i}: NVIDIA A100 (UUID: GPU-{i})" for i in range(3))
    executable(repository / "bin/nvidia-smi", f"#!/bin/sh\necho '{gpus}'\n")
    done = run(repository, "launch/local.sh", *arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {line}")
    assert not list(repository.glob("started_*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reaches_each_process_once_and_is_waited_for(repository, number):
    # As a terminal does it, to the launcher and whatever is in its group.
    launcher = subprocess.Popen(
        ["launch/local.sh", "--processes", "2", "trains"],
        cwd=repository,
        env=environment(repository),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    give_up = time.monotonic() + 30
    while len(list(repository.glob("started_?"))) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.killpg(launcher.pid, number)
    assert launcher.wait(30) == 130
    for rank in "01":
        assert (repository / f"asked_{rank}").read_text() == repr([int(number)])


def test_one_that_fails_ends_the_others(repository):
    launcher = repository / "launch/local_processes.py"
    text = launcher.read_text()
    assert "PATIENCE = 90" in text
    launcher.write_text(text.replace("PATIENCE = 90", "PATIENCE = 0.5"))
    done = run(repository, "launch/local.sh", "--processes", "3", "fails")
    assert done.returncode == 1
    assert "process 1 ended with exit code 1\n" in done.stderr
    assert "  error: broken on purpose\n" in done.stderr
    assert "process 0 ended" not in done.stderr  # a consequence, not a reason


# Starts SLURM_NTASKS tasks of the command that follows the options, on one node each.
SRUN = """#!/bin/bash
options=()
while [[ $1 == --* ]]; do options+=("$1"); shift; done
printf '%s\\n' "${options[@]}" > srun_options
export SLURM_STEP_NODELIST=localhost SLURM_LOCALID=0
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i "$@" & tasks+=("$!"); done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "$code"
"""

# In the place of the training: the processes join, which JAX's own detection of SLURM does.
JOIN = """import os, sys
from slam_jax.parallel import processes, runtime
runtime.configure()
processes.join()
import jax
from jax.experimental.multihost_utils import process_allgather
with processes.together():
    got = process_allgather(jax.numpy.ones(1) * (jax.process_index() + 1)).ravel().tolist()
text = repr((jax.process_count(), jax.device_count(), got, sys.argv[1:]))
open(f"joined_{os.environ['SLURM_PROCID']}", "w").write(text)
"""


def sbatch(folder, task, *arguments, **changes):
    """Runs the script as SLURM would: a copy in another place, started where it was submitted."""
    script = shutil.copy(LAUNCH / "slurm.sbatch", folder / "slurm_script")
    executable(folder / "bin/srun", SRUN)
    executable(folder / "bin/scontrol", '#!/bin/sh\necho "$@" > scontrol_called\n')
    python = executable(folder / "bin/task", task)
    slurm = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "123456", "SLURM_NTASKS": "2"}
    return run(folder, "bash", script, *arguments, cwd="/", PYTHON=str(python), **slurm, **changes)


@pytest.mark.slow
def test_tasks_of_slurm_join_by_themselves(tmp_path):
    join = tmp_path / "join.py"
    join.write_text(JOIN)
    task = f'#!/bin/sh\nexec {sys.executable} {join} "$@"\n'
    cpus = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    done = sbatch(tmp_path, task, "configs/sd.py", "--config.a=(1, 2)", **cpus)
    assert done.returncode == 0, done.stderr
    arguments = ["-m", "slam_jax.main", "--distributed", "--config", "configs/sd.py"]
    arguments += ["--config.a=(1, 2)", "--resume"]
    for rank in (0, 1):
        text = (tmp_path / f"joined_{rank}").read_text()
        assert text == repr((2, 4, [1.0, 2.0], arguments))
    assert not (tmp_path / "scontrol_called").exists()


@pytest.mark.parametrize("code", [0, 1, 130, 143])
def test_slurm_requeues_a_run_that_was_stopped_and_no_other(tmp_path, code):
    task = f'#!/bin/sh\necho "$JAX_LOCAL_DEVICE_IDS" > gpus_$SLURM_PROCID\nexit {code}\n'
    done = sbatch(tmp_path, task, "configs/sd.py", SLURM_GPUS_ON_NODE="4", SLURM_CPUS_PER_TASK="8")
    assert done.returncode == code
    called = tmp_path / "scontrol_called"
    assert (called.read_text() if called.exists() else "") == (
        "requeue 123456\n" if code in (130, 143) else ""
    )
    assert (tmp_path / "gpus_1").read_text() == "0,1,2,3\n"
    options = (tmp_path / "srun_options").read_text().split()
    assert options == ["--cpus-per-task=8", "--label", "--wait=0", "--kill-on-bad-exit=0"]


def test_options_of_sbatch_are_those_of_its_manual():
    known = {
        "job-name": r"\w+",
        "nodes": r"\d+",
        "ntasks-per-node": r"\d+",
        "gpus-per-node": r"\d+",
        "cpus-per-task": r"\d+",
        "time": r"\d+:\d\d:\d\d",
        "signal": r"TERM@\d+",  # without B: it goes to the tasks, not to the script
        "requeue": "",
        "open-mode": "append",
        "output": r"slurm-%j\.out",
    }
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    given = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    options = dict(re.fullmatch(r"--([a-z-]+)=?(.*)", option).groups() for option in given)
    assert options.keys() == known.keys()
    assert all(re.fullmatch(known[name], value) for name, value in options.items())
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:])
    assert options["ntasks-per-node"] == "1"
