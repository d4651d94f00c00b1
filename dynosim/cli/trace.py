"""`dynosim trace`: inspect, convert and write traces. Arguments in, library calls, text out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynosim.cli.help_groups import GroupedCommands
from dynosim.cli.options import AsJson, Overrides, Overwrite, PlanFile, SkipBadLines

if TYPE_CHECKING:
    from dynosim.workload.readers import ReadTrace

app = typer.Typer(
    cls=GroupedCommands,
    add_completion=False,
    help="Inspect, convert and generate traces.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_WRITTEN = "mooncake, azure, jsonl or agentic_mooncake; by the file's name if not given"
_READ = (
    "mooncake, azure, jsonl, agentic_mooncake, dynamo, weka or bailian; by the file if not given"
)

TraceFile = Annotated[Path, typer.Argument(help="Trace file, plain or gzipped.")]
Format = Annotated[str | None, typer.Option(help=f"Format: {_READ}.")]
BlockTokens = Annotated[
    int | None,
    typer.Option(help="Prompt tokens behind one hash id; else as the file says, or 512."),
]
Limit = Annotated[int | None, typer.Option(help="Read only the first rows.")]
LengthsFromHashIds = Annotated[
    bool,
    typer.Option(
        "--lengths-from-hash-ids", help="Prompts without a length fill their blocks; count them."
    ),
]
Sort = Annotated[bool, typer.Option("--sort", help="Put rows in order of arrival.")]
TargetFile = Annotated[Path, typer.Argument(help="File to write, gzipped if it ends in .gz.")]
To = Annotated[str | None, typer.Option("--to", help=f"Format to write: {_WRITTEN}.")]

# The description of a synthetic workload; a flag that is not given leaves the file's value.
SpecFile = Annotated[Path | None, typer.Option(help="YAML with the same keys; flags override it.")]
Seed = Annotated[int | None, typer.Option(help="Default: the YAML's seed, else 0.")]
Requests = Annotated[int | None, typer.Option(help="Requests in all.")]
Sessions = Annotated[int | None, typer.Option(help="Sessions, instead of requests.")]
Isl = Annotated[str | None, typer.Option(help="First prompt: 4000, or normal:mean=4000,std=900.")]
Osl = Annotated[str | None, typer.Option(help="Output tokens, written likewise.")]
TurnIsl = Annotated[str | None, typer.Option(help="New tokens of a later turn; default: as isl.")]
Turns = Annotated[str | None, typer.Option(help="Turns per session, e.g. geometric:mean=3.")]
ThinkTimeMs = Annotated[str | None, typer.Option(help="From an answer to the next turn.")]
Arrival = Annotated[str | None, typer.Option(help="poisson, gamma, constant or closed (all at 0).")]
RateRps = Annotated[float | None, typer.Option(help="Requests/s, all turns counted.")]
Burstiness = Annotated[float | None, typer.Option(help="Shape of gamma: below 1 is bursty.")]
SharedPrefixRatio = Annotated[float | None, typer.Option(help="Share of prompt common to a group.")]
SharedPrefixTokens = Annotated[int | None, typer.Option(help="The same in tokens, whole blocks.")]
PrefixGroups = Annotated[int | None, typer.Option(help="Groups that share a prefix.")]
PrefixGroupSkew = Annotated[float | None, typer.Option(help="0: equal groups, 1: Zipf.")]
MaxContextTokens = Annotated[int | None, typer.Option(help="End sessions before they exceed it.")]
HashBlockTokens = Annotated[int | None, typer.Option(help="Prompt tokens behind one hash id.")]


@app.command(epilog="Example: dynosim trace inspect traces/chat_sessions.jsonl.gz --plot chat.png")
def inspect(
    trace: TraceFile,
    format: Format = None,
    trace_block_size: BlockTokens = None,
    block_size: Annotated[
        int | None, typer.Option(help="Engine block size in tokens: adds the reuse at that size.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the statistics into this PNG.")] = None,
    limit: Limit = None,
    skip_bad_lines: SkipBadLines = False,
    lengths_from_hash_ids: LengthsFromHashIds = False,
    sort: Sort = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Print a trace's counts, rates, lengths, sessions and reuse.

    Reuse is what an endless cache would see.
    """
    from dynosim.files.result_folder import check_files
    from dynosim.workload.inspect import inspect_trace
    from dynosim.workload.summary import summary_lines

    if plot is not None:
        check_files([plot], overwrite=overwrite, option="--plot")
    read = _read(
        trace,
        format=format,
        trace_block_size=trace_block_size,
        limit=limit,
        skip_bad_lines=skip_bad_lines,
        lengths_from_hash_ids=lengths_from_hash_ids,
        sort=sort,
    )
    summary = inspect_trace(read.trace, block_size)
    summary |= {"format": read.format, "moved_rows": read.moved_rows}
    if plot is not None:
        from dynosim.workload.figure import plot_trace

        plot_trace(read.trace, plot)
        summary["plot"] = str(plot)
    _print(summary, summary_lines(summary), as_json=json)


@app.command(
    epilog="Example: dynosim trace reuse traces/chat_sessions.jsonl.gz --model Qwen/Qwen3-32B "
    "--capacity 100GB,400GB,1.6TB --policy lru,arc"
)
def reuse(
    trace: TraceFile,
    format: Format = None,
    trace_block_size: BlockTokens = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Engine block size in tokens; as the trace's.")
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(help="Sizes in blocks, or as 10GB with --model; by doubling.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="A device cache of this size; then capacities are the host's."),
    ] = None,
    policy: Annotated[str, typer.Option(help="What goes first: lru, arc, or lru,arc.")] = "lru",
    model: Annotated[str | None, typer.Option(help="Whose 16-bit KV it is: adds bytes.")] = None,
    prompt_only: Annotated[
        bool, typer.Option("--prompt-only", help="Answers take no room.")
    ] = False,
    enough: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of what is reusable to find room for.")
    ] = 0.9,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this PNG.")] = None,
    limit: Limit = None,
    skip_bad_lines: SkipBadLines = False,
    lengths_from_hash_ids: LengthsFromHashIds = False,
    sort: Sort = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Print how much of the prompts caches of any size have.

    One request after the other, in the file's order, beside what perfect foresight has (Belady).
    """
    from dynosim.cli.reuse_text import blocks_of, policies_of, print_reuse
    from dynosim.files.result_folder import check_files
    from dynosim.metrics.reuse import ReuseQuestion, reuse_by_capacity

    if plot is not None:
        check_files([plot], overwrite=overwrite, option="--plot")
    read = _read(
        trace,
        format=format,
        trace_block_size=trace_block_size,
        limit=limit,
        skip_bad_lines=skip_bad_lines,
        lengths_from_hash_ids=lengths_from_hash_ids,
        sort=sort,
    )
    tokens = read.trace.trace_block_size if block_size is None else block_size
    block_bytes = None if model is None else tokens * _kv_bytes_per_token(model)
    sizes = None
    if capacity is not None:
        sizes = tuple(blocks_of(size, "--capacity", block_bytes) for size in capacity.split(","))
    question = ReuseQuestion(
        block_size=tokens,
        capacities=sizes,
        policies=policies_of(policy),
        device_blocks=0 if device is None else blocks_of(device, "--device", block_bytes),
        with_answers=not prompt_only,
        enough=enough,
    )
    summary = reuse_by_capacity(read.trace, question)
    summary |= {"bytes_per_block": block_bytes, "moved_rows": read.moved_rows}
    if plot is not None:
        from dataclasses import replace

        from dynosim.metrics.reuse import curve_capacities
        from dynosim.plots.reuse_curve import write_reuse_png

        curve = replace(question, capacities=curve_capacities(summary), policies=("lru",))
        write_reuse_png(plot, summary, reuse_by_capacity(read.trace, curve)["capacities"])
        summary["plot"] = str(plot)
    if json:
        _print(summary, [], as_json=True)
    else:
        print_reuse(summary)


def _kv_bytes_per_token(model: str) -> int:
    from dynosim.silicon.catalogue import model_entry
    from dynosim.timing.architecture import model_shape
    from dynosim.timing.weights import PLAIN_BYTES

    return model_shape(model_entry(model)).kv_bytes_per_token(1, PLAIN_BYTES)


@app.command(epilog="Example: dynosim trace convert azure.csv.gz azure.jsonl.gz --to jsonl")
def convert(
    source: TraceFile,
    target: TargetFile,
    format: Annotated[str | None, typer.Option("--from", help=f"Source: {_READ}.")] = None,
    to: To = None,
    trace_block_size: BlockTokens = None,
    limit: Limit = None,
    skip_bad_lines: SkipBadLines = False,
    lengths_from_hash_ids: LengthsFromHashIds = False,
    sort: Sort = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Write a trace in another format; name what that cannot hold."""
    from dynosim.files.result_folder import check_files
    from dynosim.workload.writers import write_trace

    check_files([target], overwrite=overwrite)
    read = _read(
        source,
        format=format,
        trace_block_size=trace_block_size,
        limit=limit,
        skip_bad_lines=skip_bad_lines,
        lengths_from_hash_ids=lengths_from_hash_ids,
        sort=sort,
    )
    lost = write_trace(read.trace, target, to)
    summary = {
        "source": str(source),
        "target": str(target),
        "requests": len(read.trace),
        "skipped_lines": read.trace.skipped_lines,
        "assumed_lengths": read.trace.assumed_lengths,
        "moved_rows": read.moved_rows,
        "lost": lost,
    }
    lines = [f"{target}: {len(read.trace)} requests"]
    lines += [f"not in this format, left out: {', '.join(lost)}"] if lost else []
    lines += [f"{read.trace.skipped_lines} bad lines left out"] if read.trace.skipped_lines else []
    if read.trace.assumed_lengths:
        lines += [f"{read.trace.assumed_lengths} prompts taken to be as long as their hash ids"]
    lines += [f"{read.moved_rows} rows moved by sorting"] if read.moved_rows else []
    _print(summary, lines, as_json=json)


@app.command(epilog="Example: dynosim trace schedule results/qwen/agg/top1 rows.jsonl")
def schedule(
    plan: PlanFile,
    target: TargetFile,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Write a run file's workload as rows for AIPerf.

    Each is due when the twin sends it.
    """
    from dynosim.config import load_run
    from dynosim.experiment.schedule import write_schedule
    from dynosim.files.result_folder import check_files

    check_files([target], overwrite=overwrite)
    run_file = plan / "config.yaml" if plan.is_dir() else plan
    count = write_schedule(load_run(run_file, set_ or []), target)
    _print(
        {"target": str(target), "requests": count}, [f"{target}: {count} requests"], as_json=json
    )


@app.command(
    epilog="Example: dynosim trace synth load.jsonl.gz --requests 2000 --rate-rps 8 "
    "--isl lognormal:mean=4000,std=3000 --osl 500 --shared-prefix-ratio 0.5 --prefix-groups 16"
)
def synth(
    target: TargetFile,
    config: SpecFile = None,
    seed: Seed = None,
    to: To = None,
    requests: Requests = None,
    sessions: Sessions = None,
    isl: Isl = None,
    osl: Osl = None,
    turn_isl: TurnIsl = None,
    turns: Turns = None,
    think_time_ms: ThinkTimeMs = None,
    arrival: Arrival = None,
    rate_rps: RateRps = None,
    burstiness: Burstiness = None,
    shared_prefix_ratio: SharedPrefixRatio = None,
    shared_prefix_tokens: SharedPrefixTokens = None,
    prefix_groups: PrefixGroups = None,
    prefix_group_skew: PrefixGroupSkew = None,
    max_context_tokens: MaxContextTokens = None,
    block_size: HashBlockTokens = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Write a synthetic trace, or one of agents that a YAML describes.

    The same seed gives the same trace.
    """
    flags = dict(locals())
    from dynosim.files.result_folder import check_files
    from dynosim.workload.agents import write_agents
    from dynosim.workload.inspect import inspect_trace
    from dynosim.workload.spec_file import WrittenSpec, read_spec, refuse_flags, spec_from_flags
    from dynosim.workload.summary import summary_lines
    from dynosim.workload.synthetic import synthesize
    from dynosim.workload.writers import write_trace

    check_files([target], overwrite=overwrite)
    written = WrittenSpec({}, 0) if config is None else read_spec(config)
    for name in ("target", "config", "seed", "to", "overwrite", "json"):
        del flags[name]
    used = written.seed if seed is None else seed
    if written.is_agents:
        refuse_flags(flags)
        trace = write_agents(written.keys, used)
    else:
        trace = synthesize(spec_from_flags(written.keys, flags), used)
    write_trace(trace, target, to)
    summary = inspect_trace(trace) | {"target": str(target)}
    _print(summary, summary_lines(summary), as_json=json)


def _read(path: Path, **options: Any) -> "ReadTrace":
    from dynosim.workload.readers import read_trace_file

    return read_trace_file(path, **options)


def _print(document: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, sort_keys=True) if as_json else "\n".join(lines))
