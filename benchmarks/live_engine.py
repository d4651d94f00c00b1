"""One real vLLM server for measurements, and what of this machine it gets."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

READY_TIMEOUT_S = 300.0
NICENESS = -10
BLOCK_SIZE = 32
MAX_MODEL_LEN = 4096
CPUS = os.sched_getaffinity(0)
"""What we were given; later we keep off those of the models."""

CPU_FLAGS = (
    "--enforce-eager",
    "--no-async-scheduling",
    "--distributed-executor-backend",
    "uni",
)
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # With the model in the scheduler's process the scheduler does not spin while it waits for it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A vLLM server's set-up."""

    python: Path
    model: Path
    dtype: str = "float32"  # CPUs without bf16 instructions are ten times slower in bfloat16
    is_gpu: bool = False
    num_gpu_blocks: int = 1000
    max_model_len: int = MAX_MODEL_LEN
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    is_caching: bool = True

    def section(self) -> dict[str, object]:
        """The `engine` of a plan."""
        return {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks": self.num_gpu_blocks,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "enable_prefix_caching": self.is_caching,
            "async_scheduling": self.is_gpu,
        }

    def command(self, port: int) -> list[str]:
        """How it is started."""
        return [
            str(self.python), "-m", "vllm.entrypoints.openai.api_server",
            "--host", "127.0.0.1", "--port", str(port), "--model", str(self.model.resolve()),
            "--served-model-name", self.model.name, "--dtype", self.dtype,
            "--generation-config", "vllm", "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log", "--block-size", str(BLOCK_SIZE),
            "--max-model-len", str(self.max_model_len), "--max-num-seqs", str(self.max_num_seqs),
            "--max-num-batched-tokens", str(self.max_num_batched_tokens),
            "--num-gpu-blocks-override", str(self.num_gpu_blocks),
            "--enable-prefix-caching" if self.is_caching else "--no-enable-prefix-caching",
            *([] if self.is_gpu else CPU_FLAGS),
        ]  # fmt: skip


@contextmanager
def server(engine: Engine, log: Path) -> Iterator[str]:
    """The server while it is needed, as its URL; its output goes to `log`."""
    port = _free_port()
    cpus = os.sched_getaffinity(0)
    environment = os.environ | ({} if engine.is_gpu else CPU_ENVIRONMENT)
    with log.open("wb") as output:
        process = subprocess.Popen(
            engine.command(port), stdout=output, stderr=output, env=environment
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log)
            if not engine.is_gpu:
                give_model_a_cpu(process.pid)
            yield url
        finally:
            os.sched_setaffinity(0, cpus)
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def take_precedence(pid: int | None = None) -> None:
    """Run a process (this one) and its children before others', where the user may (root).

    Linux shares processors among sessions first and looks at niceness only within one, so that the
    session gets it too.
    """
    pid = os.getpid() if pid is None else pid
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))


def give_model_a_cpu(pid: int) -> None:
    """Keep each process that computes on a CPU of its own, and all else on what CPUs are left.

    The system else moves the model aside whenever the HTTP server or the client wakes up. `pid` is
    the process that started all others; those in sessions of their own take precedence, too.
    """
    cpus = sorted(CPUS)
    names = {one: Path(f"/proc/{one}/comm").read_text() for one in (pid, *_descendants(pid))}
    models = [one for one, name in names.items() if name.startswith("VLLM::")]
    others = cpus[: -len(models)] or cpus
    for one in names:
        take_precedence(one)
        if len(models) <= len(cpus):
            _pin(one, [cpus[-1 - models.index(one)]] if one in models else others)
    if len(models) <= len(cpus):
        os.sched_setaffinity(0, others)  # load generators started from here on


def _pin(pid: int, cpus: list[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread.name), cpus)


@contextmanager
def no_idle_cpu() -> Iterator[None]:
    """Let no CPU be idle: something that gives way to everything else runs on each.

    Virtual CPUs are often threads of one core, of which each is up to twice as fast while the other
    sleeps: a model would compute the faster, the less the HTTP server beside it has to do.
    """
    processes = [multiprocessing.Process(target=_spin, args=(cpu,), daemon=True) for cpu in CPUS]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def _spin(cpu: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.sched_setaffinity(0, {cpu})
    os.setsid()  # a session's share of the CPU is its own, and this one's is to be small
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        Path("/proc/self/autogroup").write_text("19")
    parent = os.getppid()
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass


def _descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return children + [one for child in children for one in _descendants(child)]


@contextmanager
def deployment(plan: Path, out: Path, python: Path) -> Iterator[str]:
    """`dynosim deploy` of real CPU engines while it is needed, as the frontend's URL."""
    cpus = os.sched_getaffinity(0)
    command = [
        sys.executable, "-m", "dynosim", "deploy", str(plan), "--real", "--engine", "vllm-cpu",
        "--engine-python", str(python), "--out", str(out), "--overwrite", "--port", "0", "--json",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = _started(process)
            give_model_a_cpu(process.pid)
            yield url
        finally:
            os.sched_setaffinity(0, cpus)
            process.terminate()


def _started(process: "subprocess.Popen[str]") -> str:
    """The URL in the document that a deployment prints when it is ready."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        with suppress(json.JSONDecodeError):
            return str(json.loads(text)["url"])
    raise SystemExit(f"deploy ended without being ready: {text}")


def dynosim(*arguments: object) -> int:
    """Run the command, its output on ours."""
    command = [sys.executable, "-m", "dynosim", *(str(argument) for argument in arguments)]
    print("$ dynosim", *arguments, flush=True)
    return subprocess.run(command, check=False).returncode


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"vLLM ended with {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"vLLM was not ready within {READY_TIMEOUT_S:.0f} s; see {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
