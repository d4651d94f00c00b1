"""`dynosim serve planner`: a plan's controller beside a deployment that others run; it advises."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from dynosim.build.live_control import live_controller, pool_sizes
from dynosim.config import RunConfig
from dynosim.errors import ConfigError
from dynosim_runtime.card import check_http_address
from dynosim_runtime.config import check_live, load_plan
from dynosim_runtime.discovery.make import discovery_spec, make_discovery
from dynosim_runtime.planner.driver import StopWatch
from dynosim_runtime.planner.session import check_scaled, control_session
from dynosim_runtime.planner.watching import WatchedWorkforce
from dynosim_runtime.ports import check_port


def serve_planner(
    plan: Path,
    overrides: Sequence[str],
    *,
    url: str,
    discovery: str | None,
    out: Path,
    port: int,
    speedup: float,
) -> int:
    """Look and decide until told to stop, carry nothing out; returns the exit code.

    A line of JSON on stdout for each look. Raises: ConfigError for a plan without a controller, a
    folder that cannot be written; LiveError for a port in use.
    """
    config = load_plan(plan, overrides)
    check_live(config)
    check_scaled(config)
    check_port(port)
    live_controller(config, speedup)
    try:
        check_http_address(url)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    gc.enable()  # short commands run without; this one may run for months
    where = discovery or discovery_spec(config.live)
    asyncio.run(_advise(config, url.rstrip("/"), where, out, port, speedup))
    return 0


async def _advise(
    config: RunConfig, url: str, discovery: str, out: Path, port: int, speedup: float
) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    watch = StopWatch()
    workforce = WatchedWorkforce(pool_sizes(config), watch)
    place = make_discovery(discovery, config.live.lease_s)
    following = asyncio.create_task(workforce.follow(place))
    try:
        async with control_session(
            config,
            workforce,
            url=url,
            watch=watch,
            folder=out,
            speedup=speedup,
            port=port,
            advisory=True,
            say=lambda text: logging.getLogger(__name__).info("%s", text),
            tell=_print,
        ):
            await stopping.wait()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await place.close()


def _print(status: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(status).decode() + "\n")
    sys.stdout.flush()
