"""A deployment on this machine: the processes of a plan, started, kept running, stopped.

async with LocalDeployment(plan, options) as deployment:
    ...  # requests to deployment.url
"""

import asyncio
import os
import shutil
import uuid
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from dynosim.atomic import locked_folder, text_writer, write_files
from dynosim.build.live_control import pool_name
from dynosim.config import RunConfig, dump_run
from dynosim.config.cluster import POOL_ROLES, PoolRole
from dynosim.config.formats import DEPLOYMENT_SCHEMA
from dynosim.errors import ConfigError
from dynosim.workers.lifecycle import WorkerEvent
from dynosim_runtime.card import LiveCard
from dynosim_runtime.errors import LiveError
from dynosim_runtime.launch.gpus import assign_gpus
from dynosim_runtime.launch.lives import follow_process
from dynosim_runtime.launch.log_writer import RotatedFile
from dynosim_runtime.launch.options import check_engine_installed
from dynosim_runtime.launch.process_log import ProcessLog
from dynosim_runtime.launch.readiness import PROBE_INTERVAL_S, Readiness
from dynosim_runtime.launch.specs import (
    DYNOSIM,
    DeployOptions,
    ProcessSpec,
    deployment_discovery,
    gpu_workers,
    process_specs,
    worker_name,
    worker_spec,
)
from dynosim_runtime.launch.status_file import StatusFile
from dynosim_runtime.launch.supervised import Observer, ProcessStatus, SupervisedProcess
from dynosim_runtime.planner.driver import StopWatch
from dynosim_runtime.planner.lives import LivingWorkers
from dynosim_runtime.ports import HeldPort

STATUS_RETRY_S = 1.0
STOP_GRACE_S = 20.0  # on top of the drain, for an engine to end, before a process is killed


def ignore(status: ProcessStatus, text: str) -> None:
    """An observer that looks away."""


class LocalDeployment:
    """Frontend and workers of a plan. Entering waits until all serve, leaving stops them all.

    `observe` is called with every change of a process; `dynosim` is how the command is called.
    Workers may be launched and drained while it serves; `lives` tells of those there are, by
    `watch`. `notes` is what else `summary` is to tell.
    """

    watch: StopWatch  # since the deployment began to start

    def __init__(
        self,
        plan: RunConfig,
        options: DeployOptions,
        *,
        observe: Observer = ignore,
        dynosim: tuple[str, ...] = DYNOSIM,
    ) -> None:
        self.out = options.out
        self._plan = plan
        self._options = options
        self._observe = observe
        self._dynosim = dynosim
        self._mark = uuid.uuid4().hex
        self._readiness = Readiness(deployment_discovery(plan, self.out), plan.live.lease_s)
        self._processes: list[SupervisedProcess] = []
        self._tasks: list[asyncio.Task[None]] = []  # end only by an error
        self._parting: dict[str, asyncio.Task[None]] = {}  # by worker: while it is being drained
        self._failure: asyncio.Future[object] | None = None  # of one of the tasks
        self._gpus: dict[str, str] = {}  # by worker: its CUDA_VISIBLE_DEVICES
        self._num_named: dict[PoolRole | None, int] = {}  # by role: workers there have been
        self.lives = LivingWorkers()
        self.notes: dict[str, Any] = {}
        self._folder = ExitStack()  # what is open of it, its lock included
        self._log: RotatedFile | None = None
        self._status_file = StatusFile(self.out / "deployment.json")
        self._port = options.port
        self._held_port: HeldPort | None = None  # the frontend's

    @property
    def url(self) -> str:
        """Where clients find the frontend, without a slash at the end."""
        host = self._plan.live.host
        host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def processes(self) -> list[ProcessStatus]:
        """Workers, then the frontend."""
        return [process.status for process in self._processes]

    async def __aenter__(self) -> Self:
        """Start everything, wait until it serves.

        Raises: ConfigError if the engine is not installed; LiveError for a port or folder in
        use, missing GPUs, a process that does not become ready. Nothing is left running then.
        """
        try:
            await self._start()
            await self._until(self._all_ready())
        except BaseException:
            await self.stop()
            raise
        for process in self._processes:
            process.may_give_up = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def wait(self) -> None:
        """Supervise until cancelled. Raises: LiveError if that has become impossible."""
        await self._until(asyncio.Event().wait())

    async def stop(self) -> None:
        """Stop the workers' intake, let them finish what they have, stop them and the frontend."""
        staying = [process for process in self._processes if process.name not in self._parting]
        workers = [process for process in staying if process.role == "worker"]
        others = [process for process in staying if process.role != "worker"]
        try:
            await asyncio.gather(
                *(process.stop(self._drain_s) for process in workers), *self._parting.values()
            )
            await asyncio.gather(*(process.stop(self._drain_s) for process in others))
        finally:
            self.kill()
            await self._release()

    def kill(self) -> None:
        """End every process at once; `stop` must follow, or be under way."""
        for process in self._processes:
            process.kill()

    # ---- more workers and fewer ------------------------------------------------------------------

    def cards(self) -> dict[str, LiveCard]:
        """What the workers say of themselves, by name."""
        return self._readiness.cards

    async def launch(self, role: PoolRole | None) -> str:
        """Start one more worker, of a role where the plan has roles; returns its name at once.

        It is tried again and again if it does not come up. Raises: LiveError if GPUs are missing.
        """
        engine = (self._plan if role is None else self._plan.for_pool(role)).engine
        gpus = None
        if gpu_workers(self._plan, self._options.engine):
            gpus = await asyncio.to_thread(
                self._gpus_for, [engine.tensor_parallel], engine.memory_fraction
            )
        index = self._num_named[role]
        self._num_named[role] += 1
        name = worker_name(role, index)
        if gpus is not None:
            self._gpus[name] = gpus[0]
        process = self._supervised(
            worker_spec(
                self._plan,
                self._options,
                role,
                index,
                gpus=self._gpus.get(name),
                dynosim=self._dynosim,
            )
        )
        process.may_give_up = False
        self.lives.begin(name, pool_name(role or "agg"), self.watch())
        self._processes.insert(-1, process)  # the frontend stays the last
        self._look_after(process.run())
        return name

    def drain(self, name: str) -> None:
        """Let a worker finish what it has and end; nothing happens if there is none, or it does."""
        for process in self._processes:
            if process.name == name and process.role == "worker" and name not in self._parting:
                self.lives.happens(name, WorkerEvent.TOLD_TO_DRAIN, self.watch())
                parting = asyncio.create_task(self._part(process), name=f"drain {name}")
                self._parting[name] = parting

    async def _part(self, process: SupervisedProcess) -> None:
        await process.stop(self._drain_s)
        self._processes.remove(process)
        self._gpus.pop(process.name, None)
        del self._parting[process.name]
        self.write_status()

    @property
    def _drain_s(self) -> float:
        return self._plan.live.drain_timeout_s + STOP_GRACE_S

    # ---- start and end ---------------------------------------------------------------------------

    async def _release(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None:
            self._failure.cancel()
        await self._readiness.close()
        self._folder.close()
        if self._held_port is not None:
            self._held_port.close()

    async def _start(self) -> None:
        self.watch = StopWatch()
        self._failure = asyncio.get_running_loop().create_future()
        self._held_port = HeldPort(self._plan.live.host, self._options.port)
        self._port = self._held_port.number
        gpus = await asyncio.to_thread(self._assign_gpus)
        await asyncio.to_thread(check_engine_installed, self._options)
        self._prepare_folder()
        specs = process_specs(
            self._plan, self._options, port=self._port, gpus=gpus, dynosim=self._dynosim
        )
        self._readiness.url = self.url
        self._processes = [self._supervised(spec) for spec in specs]
        self._name_workers(specs)
        self._look_after(asyncio.create_task(self._readiness.watch_cards(), name="watch discovery"))
        self._look_after(asyncio.create_task(self._keep_status(), name="deployment.json"))
        for process in self._processes:
            self._look_after(process.run())

    def _name_workers(self, specs: list[ProcessSpec]) -> None:
        """Note who there is, and which GPUs are theirs."""
        for spec in specs:
            if "CUDA_VISIBLE_DEVICES" in spec.environment:
                self._gpus[spec.name] = spec.environment["CUDA_VISIBLE_DEVICES"]
        plan = self._plan
        if plan.cluster.is_disagg:
            self._num_named = {role: plan.cluster.pool(role).workers for role in POOL_ROLES}
        else:
            self._num_named = {None: plan.cluster.workers}

    def _look_after(self, task: "asyncio.Task[None]") -> None:
        """Its error, if it ends by one, is the deployment's."""

        def ended(task: "asyncio.Task[None]") -> None:
            self._tasks.remove(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and self._failure is not None and not self._failure.done():
                self._failure.set_exception(error)

        self._tasks.append(task)
        task.add_done_callback(ended)

    def _assign_gpus(self) -> list[str]:
        """CUDA_VISIBLE_DEVICES of the GPU workers."""
        kinds = gpu_workers(self._plan, self._options.engine)
        widths = [engine.tensor_parallel for number, engine in kinds for _ in range(number)]
        if not widths:
            return []
        return self._gpus_for(widths, max(engine.memory_fraction for _, engine in kinds))

    def _gpus_for(self, widths: list[int], memory_share: float) -> list[str]:
        """CUDA_VISIBLE_DEVICES of more workers, none of which others have. Raises: LiveError."""
        assigned = assign_gpus(
            widths,
            memory_share,
            cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
            taken=[int(index) for gpus in self._gpus.values() for index in gpus.split(",")],
        )
        return [",".join(str(gpu.index) for gpu in gpus) for gpus in assigned]

    def _prepare_folder(self) -> None:
        """Raises: LiveError if another deployment uses the folder, or it cannot be written."""
        try:
            self._folder.enter_context(locked_folder(self.out, work="another deployment"))
            self._folder.callback(self._status_file.close)
            shutil.rmtree(self.out / "logs", ignore_errors=True)
            (self.out / "logs").mkdir()
            live = self._plan.live
            self._log = RotatedFile(
                self._options.log_file("deploy"), live.process_log_mib << 20, live.process_log_files
            )
            self._folder.callback(self._log.close)
            write_files(
                self._options.plan_file.parent,
                {self._options.plan_file.name: text_writer(dump_run(self._plan))},
            )
        except ConfigError as error:
            raise LiveError(str(error)) from None
        except OSError as error:
            raise LiveError(f"{self.out}: {error.strerror} (name another --out)") from None

    def _supervised(self, spec: ProcessSpec) -> SupervisedProcess:
        live = self._plan.live
        log = ProcessLog(
            self._options.log_file(spec.name),
            max_bytes=live.process_log_mib << 20,
            max_files=live.process_log_files,
        )
        return SupervisedProcess(
            spec,
            log=log,
            mark=f"{self._mark}/{spec.name}",
            probe=self._readiness.wait_for,
            liveness=self._readiness.is_answering,
            ready_timeout_s=live.ready_timeout_s,
            observe=self._changed,
        )

    def _changed(self, status: ProcessStatus, text: str) -> None:
        self.say(f"{status.name}: {text}")
        if status.role == "worker":
            self._live_on(status)
        self.write_status()
        self._observe(status, text)

    def _live_on(self, status: ProcessStatus) -> None:
        """What has happened to a worker, as its life."""
        role = status.name.rpartition("-")[0] if self._plan.cluster.is_disagg else "agg"
        in_order = all(one.ended_in_order for one in self._processes if one.name == status.name)
        follow_process(self.lives, status, pool_name(role), in_order=in_order, now_ms=self.watch())

    def say(self, text: str) -> None:
        """Something that is not of one process, for the deployment's log."""
        if self._log is not None:
            now = datetime.now().astimezone().isoformat(timespec="milliseconds")
            self._log.write(f"{now} {text}\n".encode(errors="replace"))

    def write_status(self) -> None:
        """Bring deployment.json up to date."""
        self._status_file.write(self.summary())

    async def _keep_status(self) -> None:
        """Write deployment.json later where it could not be written at once."""
        while True:
            await asyncio.sleep(STATUS_RETRY_S)
            self._status_file.retry()

    def summary(self) -> dict[str, Any]:
        """URL, processes and folder as plain data."""
        processes = [{**asdict(status), "log": str(status.log)} for status in self.processes]
        return {
            "schema": DEPLOYMENT_SCHEMA,
            "url": self.url,
            "processes": processes,
            "out": str(self.out),
            **self.notes,
        }

    async def _until(self, aim: Coroutine[Any, Any, object]) -> None:
        """Wait for `aim`, unless supervision fails. Raises: LiveError then."""
        assert self._failure is not None, "it has begun to start"
        wanted: asyncio.Future[object] = asyncio.create_task(aim)
        try:
            await asyncio.wait({wanted, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
            wanted.result()
        finally:
            wanted.cancel()

    async def _all_ready(self) -> None:
        """Every process serves, and the frontend sends requests to every worker."""
        while not all(process.is_ready for process in self._processes):
            await asyncio.sleep(PROBE_INTERVAL_S)
        workers = [process.name for process in self._processes if process.role == "worker"]
        limit_s = self._plan.live.ready_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._readiness.workers_are_served(workers)
        except TimeoutError:
            raise LiveError(
                f"the frontend does not reach all workers within {limit_s:g} s; "
                f"{self.url}/workers shows those it does, {self._options.log_file('frontend')} why"
            ) from None
