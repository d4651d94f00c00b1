"""README.md of a winner's folder: what it is, and what to do with it, in six lines."""

from collections.abc import Sequence

from dynosim.config.cluster import POOL_ROLES
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.answer import user_speed
from dynosim.sweep.engine_script import script_name
from dynosim.sweep.pool_files import GENERATOR_FILE, POOL_FILES
from dynosim.sweep.results import CAPACITY, FAILED_LOAD
from dynosim.sweep.travelling_files import TravellingFile
from dynosim.sweep.winners import Recommended, layout_of


def winner_readme(
    sweep: SweepConfig, winner: Recommended, config: RunConfig, files: Sequence[TravellingFile]
) -> str:
    """The file's text. `config` brings the load that the layout carries."""
    lines = [
        f"# {config.name}: {', '.join(winner.roles)} ({winner.family})",
        _carried(sweep, winner, config),
        _run(sweep, config),
        "Serve: `dynosim deploy . --mock` (simulated engines), `dynosim deploy . --real`, or "
        f"`./{script_name(config)}`, which holds the exact `vllm serve` command lines.",
        "Prove: `dynosim validate . --url http://HOST:PORT` sets prediction.json against what it "
        "measures; `./bench.sh URL` measures with AIPerf at 0.5, 0.8 and 1 of this load.",
        _needs(files),
        *_pool_lines(config),
    ]
    return "\n".join(lines) + "\n"


def _carried(sweep: SweepConfig, winner: Recommended, config: RunConfig) -> str:
    report = winner.row.report
    gpus = config.num_gpus
    layout = f"{gpus} GPU{'s' if gpus > 1 else ''} ({_workers(config)})"
    speed = f"{report.get('output_tok_s_per_gpu') or 0:.3g} output tokens/s per GPU"
    speed += f", {user_speed(winner.row):.3g} per user (median)"
    load = report.get(CAPACITY)
    if sweep.load.search == "fixed" or load is None:
        return f"At the workload's own load, on {layout}: {speed}. No capacity was sought."
    failed = report.get(FAILED_LOAD)
    unit = "requests in flight" if sweep.load.vary == "concurrency" else "times the workload's load"
    beyond = "the most that was tried" if failed is None else f"{failed:.4g} is too much"
    return (
        f"Carries {report.get('capacity_rps') or 0:.3g} requests/s on {layout}: {load:.4g} {unit} "
        f"({beyond}); there {speed}."
    )


def _workers(config: RunConfig) -> str:
    """How many of which kind, as in `4 x TP2`."""
    counts = [f"{pool.cluster.workers} x {layout_of(pool.engine)}" for pool in config.pools()]
    if not config.cluster.is_disagg:
        return counts[0]
    return " and ".join(f"{role} {count}" for role, count in zip(POOL_ROLES, counts, strict=True))


def _pool_lines(config: RunConfig) -> list[str]:
    """What else is there of a disaggregated winner."""
    if not config.cluster.is_disagg:
        return []
    names = [f"`{name}`" for name in POOL_FILES.values()]
    return [
        f"Pools: {' and '.join(names)} are for `vllm serve MODEL --config FILE`, "
        f"`{GENERATOR_FILE}` says the same in AIConfigurator's sections; KV goes by vLLM's "
        "NixlConnector, which needs `pip install nixl` on every machine."
    ]


def _run(sweep: SweepConfig, config: RunConfig) -> str:
    workload = config.workload
    load = f"workload.arrival_scale {workload.arrival_scale:.4g}"
    if workload.concurrency is not None:
        load = f"workload.concurrency {workload.concurrency}"
    if workload.repeat > 1:
        load += f"; it is put end to end {workload.repeat} times, to be long enough"
    which = "that load" if sweep.load.search != "fixed" else "the same"
    return (
        f"Run: `dynosim run config.yaml` shows {which} again ({load}); config.yaml says what "
        "differs from the defaults, config.full.yaml everything."
    )


def _needs(files: Sequence[TravellingFile]) -> str:
    here = [file.label for file in files if file.copies]
    away = [file.label for file in files if not file.copies]
    words = [f"In `inputs`: {'; '.join(here)}."] if here else []
    if away:
        words.append(
            f"Not here: {'; '.join(away)}. Where config.yaml finds "
            f"{'it' if len(away) == 1 else 'them'} no more, name a copy with --set (`"
            + " ".join(f"--set {'.'.join(file.key)}=PATH" for file in files if not file.copies)
            + "`)."
        )
    return " ".join(words) if words else "Files: nothing else is needed."
