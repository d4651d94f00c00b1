"""What the races have in common: the trace, the configuration, and fresh processes run in turn.

Times are CPU time that processes spend in user mode, their children's included: it depends less on
what else the machine does than time on the clock. Who takes part runs in turn, and of each pair of
neighbours the ratio is taken; printed are medians.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DYNOSIM_SHARED", ROOT.parent / "shared"))
BLOCK_SIZE = 64
NUM_BLOCKS = 16384

NO_BYTE_CODE = "PYTHONDONTWRITEBYTECODE"  # nobody who cares about time sets it

CORE = """
import json
import dynosim.config, dynosim.sweep.trial
try:
    from dynosim.compiled import CORE
except ImportError:
    CORE = "pure Python core"
print(json.dumps({"core": str(CORE)}))
"""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What KV of one token weighs, how fast it goes from worker to worker, and what is sent."""

    gb_s: float
    kv_bytes: int
    moves: str


FREE = Link(gb_s=1e9, kv_bytes=1, moves="destination_missing")
"""Over which transfers take no time; the peer, which is told of no link then, takes none."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A version of dynosim to be timed."""

    folder: Path
    is_pure: bool

    def call(self, code: str, *arguments: object) -> Figures:
        """What `code` prints as JSON, run with this version in a process of its own."""
        return timed_process([sys.executable, "-P", "-c", code, *map(str, arguments)], self.env())

    def command(self, *arguments: object) -> Figures:
        """What a command of dynosim prints as JSON, run with this version."""
        command = [sys.executable, "-P", "-m", "dynosim", *map(str, arguments)]
        return timed_process(command, self.env())

    def env(self) -> dict[str, str]:
        """Environment variables of that process."""
        given = {name: value for name, value in os.environ.items() if name != NO_BYTE_CODE}
        pure = {"DYNOSIM_PURE": "1"} if self.is_pure else {}
        safe = {"PYTHONSAFEPATH": "1"}  # its children import nothing from where we stand
        return {**given, **pure, **safe, "PYTHONPATH": str(self.folder)}

    def core(self) -> str:
        """Whether its core is compiled. Asking has Python's byte code written, if it is not yet."""
        core: str = self.call(CORE)["core"]
        return core


Race = Callable[[argparse.Namespace, dict[str, Checkout], Path], list[Figures]]


def timed_process(
    command: Sequence[str], env: dict[str, str] | None = None, *, prints_json: bool = True
) -> Figures:
    """What a command prints as JSON, with `process_user_s` and `process_s` on the clock."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    wall_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{command[0]} ... failed:\n{done.stderr}")
    user_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
    figures: Figures = json.loads(done.stdout) if prints_json else {}
    return figures | {"process_user_s": user_s, "process_s": wall_s}


def parser_of(doc: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    """The options of every race."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    default = SHARED / "traces" / "mooncake_conversation.jsonl.gz"
    parser.add_argument("--trace", type=Path, default=default, help="in Mooncake's format")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each one runs")
    pure = os.environ.get("DYNOSIM_PURE", "0") not in ("", "0")
    parser.add_argument("--pure", action="store_true", default=pure, help="no compiled core")
    parser.add_argument("--against", type=Path, help="checkout of another version to compare with")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser


def add_peer(parser: argparse.ArgumentParser) -> None:
    """The options of races against the peer."""
    parser.add_argument("--router", choices=("round-robin", "kv"), default="round-robin")
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"))
    parser.add_argument("--peer-script", type=Path, default=SHARED / "tools" / "peer_replay.py")


def add_link(parser: argparse.ArgumentParser) -> None:
    """The options of races in which KV moves: without them, moving takes no time."""
    parser.add_argument("--gb-s", type=float, default=FREE.gb_s, help="a worker's link, in GB/s")
    parser.add_argument("--kv-bytes", type=int, default=FREE.kv_bytes, help="KV of one token")
    moves = ("destination_missing", "full_prompt")
    parser.add_argument("--moves", choices=moves, default=FREE.moves, help="what is sent")


def link_of(args: argparse.Namespace) -> Link:
    """What those options say."""
    return Link(gb_s=args.gb_s, kv_bytes=args.kv_bytes, moves=args.moves)


def checkouts(args: argparse.Namespace) -> dict[str, Checkout]:
    """Who runs of ours: `ours`, and `before` if there is something to compare with."""
    found = {"ours": Checkout(ROOT, args.pure)}
    if args.against is not None:
        found["before"] = Checkout(args.against.resolve(), args.pure)
    return found


def checked_trace(args: argparse.Namespace) -> Path:
    """The trace that was asked for."""
    trace: Path = args.trace
    if not trace.exists():
        sys.exit(f"{trace}: no such trace (give one with --trace)")
    return trace


def unpacked(trace: Path, copies: int, folder: Path) -> Path:
    """The trace as plain JSON lines (the peer reads no gzip), repeated one after the other."""
    opener = gzip.open if trace.suffix == ".gz" else open
    with opener(trace, "rt") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    span_ms = max(row["timestamp"] for row in rows) + 3000
    num_ids = 1 + max(max(row["hash_ids"]) for row in rows)
    path = folder / f"trace_x{copies}.jsonl"
    with path.open("w") as out:
        for copy in range(copies):
            for row in rows:
                ids = [copy * num_ids + h for h in row["hash_ids"]]
                shifted = {"timestamp": row["timestamp"] + copy * span_ms, "hash_ids": ids}
                out.write(json.dumps({**row, **shifted}) + "\n")
    return path


def run_file(trace: Path, folder: Path) -> Path:
    """A run file with the common configuration; one more block, for vLLM's placeholder."""
    path = folder / "run.json"
    config = {
        "name": "replay benchmark",
        "workload": {"trace": str(trace), "format": "mooncake"},
        "engine": {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks": NUM_BLOCKS + 1,
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "max_model_len": NUM_BLOCKS * BLOCK_SIZE,
            "async_scheduling": False,  # the peer has no other loop
        },
        "timing": {"kind": "polynomial"},
        "router": {"mode": "round-robin"},
    }
    path.write_text(json.dumps(config))
    return path


Layout = int | tuple[int, int]
"""Equal workers, or prefill and decode workers."""


def layout(text: str) -> Layout:
    """`4`, or `2P2D`."""
    prefill, found, decode = text.upper().removesuffix("D").partition("P")
    return (int(prefill), int(decode)) if found else int(text)


def settings(workers: Layout, router: str, seed: int, link: Link = FREE) -> list[str]:
    """What a run file is told on top."""
    common = [f"router.mode={router}", f"seed={seed}"]
    if isinstance(workers, int):
        return [f"cluster.workers={workers}", *common]
    prefill, decode = workers
    return [
        "cluster.mode=disagg",
        f"cluster.prefill.workers={prefill}",
        f"cluster.decode.workers={decode}",
        f"cluster.transfer.bandwidth_gb_s={link.gb_s:f}",
        f"cluster.transfer.kv_bytes_per_token={link.kv_bytes}",
        f"cluster.transfer.moves={link.moves}",
        *common,
    ]


def peer_settings(workers: Layout, link: Link = FREE) -> list[str]:
    """What the peer's script is told for the same layout."""
    common = ["--block-size", str(BLOCK_SIZE), "--num-gpu-blocks", str(NUM_BLOCKS)]
    if isinstance(workers, int):
        return ["--workers", str(workers), *common]
    prefill, decode = map(str, workers)
    common += ["--prefill-workers", prefill, "--decode-workers", decode]
    if link == FREE:
        return common
    engine = {
        "kv_transfer_bytes_per_token": link.kv_bytes,
        "kv_transfer_bandwidth": link.gb_s,
        "kv_transfer_timing_mode": link.moves,
    }
    return [*common, "--engine", json.dumps(engine)]


def run_peer(args: argparse.Namespace, trace: Path, workers: Layout, link: Link = FREE) -> Figures:
    """One process of the peer: its summary, its time, and that of its replay call on the clock."""
    command = [args.peer_python, str(args.peer_script), str(trace)]
    command += peer_settings(workers, link)
    command += ["--router", "kv_router" if args.router == "kv" else "round_robin"]
    result = timed_process(command)
    return {**result.pop("summary"), **result}


def in_turn(rounds: int, sides: dict[str, Callable[[int], Figures]]) -> dict[str, list[Figures]]:
    """The figures of each side: in every round all run one after the other."""
    found: dict[str, list[Figures]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            found[name].append(side(number))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def median(runs: list[Figures], key: str) -> float:
    """Of one figure over the rounds."""
    return statistics.median(run[key] for run in runs)


def ratio(above: list[Figures], below: list[Figures], key: str, key_below: str = "") -> float:
    """The median over the rounds of how many times a figure is that of another side."""
    pairs = zip(above, below, strict=True)
    return statistics.median(high[key] / low[key_below or key] for high, low in pairs)


def hold_race(args: argparse.Namespace, race: Race) -> None:
    """Print who runs on what, then the rows of their race, which has a folder for its files."""
    sides = checkouts(args)
    print(f"processor: {processor()}")
    for side, checkout in sides.items():
        print(f"{side}: {checkout.core()}")
    with tempfile.TemporaryDirectory() as name:
        rows = race(args, sides, Path(name))
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows)


def print_table(rows: list[Figures]) -> None:
    """Rows with the same keys, which are the columns' names."""
    print(" ".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        print(" ".join(f"{_cell(value):>12}" for value in row.values()))


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def processor() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
