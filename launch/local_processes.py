"""Starts a run as several processes on this machine; `launch/local.sh --processes N CONFIG ...`.

Process 0 writes to the terminal, every other one to a file that is named at the start. Each gets
its share of the GPUs, if there are any. Ctrl-C and SIGTERM reach all of them, once each: they save
a checkpoint and end. When one fails, the others notice and end too; what is left after PATIENCE is
killed. The exit code is that of the first that failed.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 90  # seconds; processes notice a lost one within a minute


def gpus() -> list[str]:
    """The GPUs that the run may use: CUDA_VISIBLE_DEVICES, or else all that nvidia-smi lists."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(listed.stdout.count("GPU "))]


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(count: int, arguments: list[str], logs: Path) -> list[subprocess.Popen]:
    """Starts the processes; in sessions of their own, so that only `wait` passes Ctrl-C on."""
    shares, address = gpus(), f"localhost:{free_port()}"
    if len(shares) % count:
        sys.exit(f"error: {count} processes cannot share {len(shares)} GPUs equally")
    each = len(shares) // count
    command = [sys.executable, "-m", "slam_jax.main", "--distributed", "--config", *arguments]
    processes = []
    for i in range(count):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(i),
        }
        if shares:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(shares[i * each : (i + 1) * each])
        output = None
        if i > 0:
            path = logs / f"process_{i}.log"
            print(f"process {i} writes to {path}", file=sys.stderr, flush=True)
            output = path.open("wb")
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                start_new_session=True,
            )
        )
        if output:
            output.close()
    return processes


def wait(processes: list[subprocess.Popen], logs: Path, asked: list[int]) -> int:
    """Waits for all; passes on the signals that come into `asked`. Returns 0, or the exit code of
    the first that failed."""
    code, deadline, running = 0, float("inf"), dict(enumerate(processes))
    while running:
        while asked:
            number = asked.pop(0)
            for process in running.values():
                process.send_signal(number)
        for i, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[i]
            if process.returncode and not code:
                code = process.returncode if process.returncode > 0 else 128 - process.returncode
                deadline = time.monotonic() + PATIENCE
                print(f"process {i} ended with exit code {code}", file=sys.stderr, flush=True)
                if i > 0:
                    last = (logs / f"process_{i}.log").read_text(errors="replace").splitlines()[-5:]
                    print(*(f"  {line}" for line in last), sep="\n", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            for process in running.values():  # with its data workers
                os.killpg(process.pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.1)
    return code


def main() -> None:
    """The command line: N CONFIG [...], run in the repository."""
    count, *arguments = sys.argv[1:] or [""]
    if not count.isdecimal() or int(count) < 1 or not arguments:
        sys.exit("error: expected launch/local.sh --processes N CONFIG [...], N at least 1")
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    # The terminal was closed: the processes, in sessions of their own, would not notice.
    signal.signal(signal.SIGHUP, lambda *_: asked.append(signal.SIGTERM))
    logs = Path(tempfile.mkdtemp(prefix="slam_jax_"))
    code = wait(start(int(count), arguments, logs), logs, asked)
    if code:
        resume = [] if "--resume" in arguments else ["--resume"]
        again = shlex.join(["launch/local.sh", "--processes", count, *arguments, *resume])
        print(f"to go on from the newest checkpoint, if there is one:\n  {again}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
