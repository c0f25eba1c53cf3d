"""The launchers for clouds: Kubernetes, TPU VMs (with a stand-in for gcloud), the image."""

import copy
import json
import re
import shlex
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from pydantic import ValidationError
from stand_ins import executable, run

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


@pytest.fixture
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def fits_the_api(jobset):
    """Whether JobSet and Kubernetes, as the published models have them, know every field."""
    try:
        return JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    except ValidationError:
        return False


def parts(jobset):
    spec = jobset["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    return spec, job, job["template"]["spec"], job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (0, "failurePolicies", {}),
        (0, "failurePolicy", {"maxRestart": 5}),
        (1, "completions", "2"),
        (1, "completionMode", "indexed"),
        (1, "completion", 2),
        (2, "terminationGracePeriod", 300),
        (2, "restartPolicy", "never"),
        (3, "arg", ["--resume"]),
        (3, "env", [{"name": "JAX_NUM_PROCESSES", "value": 2}]),
    ],
)
def test_every_field_of_the_jobset_is_known(jobset, part, name, value):
    assert fits_the_api(jobset)
    wrong = copy.deepcopy(jobset)
    parts(wrong)[part][name] = value
    assert not fits_the_api(wrong)


def test_jobset_fits_together(jobset):
    spec, job, pod, container = parts(jobset)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert job["completions"] == job["parallelism"] == int(env["JAX_NUM_PROCESSES"])
    # JobSet's names: JOBSET-JOB-JOBINDEX-PODINDEX.SUBDOMAIN, and the subdomain is the JobSet's.
    name, train = jobset["metadata"]["name"], spec["replicatedJobs"][0]
    assert train["replicas"] == 1 and "subdomain" not in spec["network"]
    host, port = env["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == f"{name}-{train['name']}-0-0.{name}" and 1024 < int(port) < 65536
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert spec["failurePolicy"]["rules"][0]["action"] in (
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    )
    rule = job["podFailurePolicy"]["rules"][0]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [130]  # of slam_jax.main, when it was stopped
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert {"--distributed", "--resume"} <= set(container["args"])
    assert (ROOT / container["args"][0]).exists()
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    workdir = next(value for value in container["args"] if value.startswith("--workdir="))
    assert workdir.startswith(f"--workdir={mounts['shared']}/")
    for amounts in container["resources"].values():
        assert all(re.fullmatch(r"\d+([KMGT]i)?", amount) for amount in amounts.values())


ON_TPU = {"TPU_NAME": "slam", "ZONE": "europe-west4-a"}
V6E = {"ACCELERATOR_TYPE": "v6e-16", "RUNTIME_VERSION": "v2-alpha-tpuv6e"}


def tpu_vm(folder, *arguments, **env):
    """Runs the script; returns how it ended and what gcloud was called with."""
    calls = folder / "calls"
    calls.touch()
    record = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(calls)!r}, 'a'))"
    executable(folder / "bin/gcloud", f"#!{sys.executable}\n{record}\n")
    done = run(folder, LAUNCH / "tpu_vm.sh", *arguments, **env)
    return done, [json.loads(line) for line in calls.read_text().splitlines()]


def test_tpu_is_asked_for(tmp_path):
    done, calls = tpu_vm(tmp_path, "create", "--spot", **ON_TPU, **V6E)
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert call[:5] == ["compute", "tpus", "queued-resources", "create", "slam"]
    assert set(call[5:]) == {
        "--node-id=slam",
        "--zone=europe-west4-a",
        "--accelerator-type=v6e-16",
        "--runtime-version=v2-alpha-tpuv6e",
        "--spot",
    }


def test_tpu_vms_get_the_repository_and_jax(tmp_path):
    done, calls = tpu_vm(tmp_path, "install", **ON_TPU)
    assert done.returncode == 0, done.stderr
    copied, installed = calls
    assert copied[:4] == ["compute", "tpus", "tpu-vm", "scp"]
    assert copied[4].endswith("/slam_jax.tar.gz") and copied[5] == "slam:"
    assert not Path(copied[4]).exists()
    assert copied[6:] == installed[5:7] == ["--zone=europe-west4-a", "--worker=all"]
    # What the VMs would run, with stand-ins.
    (tmp_path / "slam_jax.tar.gz").write_bytes(b"")
    executable(tmp_path / "bin/tar", '#!/bin/sh\necho tar "$@" >> did\n')
    executable(tmp_path / "bin/python3", '#!/bin/sh\necho python3 "$@" >> did\n')
    command = installed[7].removeprefix("--command=")
    done = run(tmp_path, "bash", "-c", command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "did").read_text() == "tar -xzf slam_jax.tar.gz -C slam_jax\n"
    did = (tmp_path / "slam_jax/did").read_text().splitlines()
    assert did[-1].endswith("uv pip install --quiet --python .venv -r requirements.txt jax[tpu]")
    assert "tpu" in metadata("jax").get_all("Provides-Extra")


def test_arguments_reach_the_tpu_vms_as_they_are(tmp_path):
    given = ["configs/sd.py", "--config.data.source=gs://b/{0..3}.tar", "--workdir", "/mnt/my runs"]
    given += ["--config.evaluation.student_steps=(1, 4)", "--config.name=it's $HOME"]
    done, calls = tpu_vm(tmp_path, "run", *given, **ON_TPU)
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert call[:5] == ["compute", "tpus", "tpu-vm", "ssh", "slam"]
    assert call[5:7] == ["--zone=europe-west4-a", "--worker=all"]
    record = "import json, sys; json.dump(sys.argv[1:], open('did', 'w'))"
    executable(tmp_path / "bin/sudo", f"#!{sys.executable}\n{record}\n")
    command = call[7].removeprefix("--command=")
    done = run(tmp_path, "bash", "-c", command, HOME="/home/me", USER="me")
    assert done.returncode == 0, done.stderr
    unit, *did = json.loads((tmp_path / "did").read_text())
    start = did.index(".venv/bin/python")
    assert unit == "systemd-run" and {"--uid=me", "--working-directory=/home/me/slam_jax"} <= set(
        did
    )
    assert did[start + 1 :] == [
        *("-m", "slam_jax.main", "--distributed", "--config"),
        *given,
        "--resume",
    ]


@pytest.mark.parametrize(
    ("arguments", "env", "line"),
    [
        ([], ON_TPU, "expected launch/tpu_vm.sh create|install|run"),
        (["start"], ON_TPU, "start: expected create|install|run"),
        (["stop"], {"ZONE": "z"}, "TPU_NAME: name the TPU"),
        (["stop"], {"TPU_NAME": "slam"}, "ZONE: name its zone"),
        (["create"], ON_TPU, "ACCELERATOR_TYPE: such as"),
        (["run"], ON_TPU, "expected launch/tpu_vm.sh run CONFIG --workdir DIR"),
        (["run", "configs/sd.py", "--workdirs=x"], ON_TPU, "add --workdir DIR"),
    ],
)
def test_tpu_vm_refuses_in_one_line(tmp_path, arguments, env, line):
    done, calls = tpu_vm(tmp_path, *arguments, **env)
    assert done.returncode != 0 and not calls
    assert line in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("log", "tpu-vm ssh slam --zone=europe-west4-a --worker=0"),
        ("stop", "tpu-vm ssh slam --zone=europe-west4-a --worker=all"),
        ("delete", "queued-resources delete slam --zone=europe-west4-a --force"),
    ],
)
def test_other_commands_for_a_tpu(tmp_path, word, command):
    done, calls = tpu_vm(tmp_path, word, **ON_TPU)
    assert done.returncode == 0 and " ".join(calls[0]).startswith(f"compute tpus {command}")


def test_image_has_what_a_run_needs():
    lines = [
        line.split(" ", 1)
        for line in (LAUNCH / "Dockerfile").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    copied = {shlex.split(rest)[0] for word, rest in lines if word == "COPY"}
    assert copied == {"requirements.txt", "configs", "slam_jax"}
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored and {f"!{source}" for source in copied} <= set(ignored)
    assert all((ROOT / source).exists() for source in copied)
    entry = json.loads(next(rest for word, rest in lines if word == "ENTRYPOINT"))
    assert entry == ["python", "-m", "slam_jax.main", "--config"]
    cuda = next(rest for word, rest in lines if word == "ARG").removeprefix("CUDA=")
    install = next(rest for word, rest in lines if word == "RUN" and "pip install" in rest)
    assert '-r requirements.txt "jax[${CUDA}]"' in install
    assert {cuda, "cuda13"} <= set(metadata("jax").get_all("Provides-Extra"))
    words = [word for word, _ in lines]
    # What changes often comes after what takes long.
    assert [rest for word, rest in lines[words.index("COPY") + 2 :] if word == "COPY"] == [
        "configs configs",
        "slam_jax slam_jax",
    ]
    assert lines[-2] == ["USER", "1000"]
