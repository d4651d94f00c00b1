"""The executor on Ray, against a Ray that loses workers: answers by index, each once."""

import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from dynosim import __version__
from dynosim.errors import ConfigError
from dynosim.sweep.executor import Request
from dynosim.sweep.ray_executor import MAX_LOSSES, RayExecutor
from dynosim.sweep.status import FAILED


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


@dataclass(eq=False)
class Reference:
    n: int
    call: Callable[[], Any]


class FakeRay:
    """Tasks run when they are waited for, the last one first. `lose` says which are lost."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        self.lost: list[int] = []  # numbers of requests, each lost as often as it is here
        self.cores = 2
        self.started: list[int] = []
        self.most_at_work = 0
        self.options: dict[str, Any] = {}
        self.is_up = False
        self.version = __version__

    def init(self, **options: Any) -> None:
        self.options, self.is_up = options, True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does, with a handler of its own

    def shutdown(self) -> None:
        self.is_up = False
        print("ray says goodbye")

    def remote(self, function: Any) -> Any:
        def submit(version: str, name: str, request: Request) -> Any:
            self.started.append(request["n"])
            return Reference(request["n"], lambda: function(version, name, request))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=submit))

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        self.most_at_work = max(self.most_at_work, len(references))
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        if reference.n in self.lost:
            self.lost.remove(reference.n)
            raise RayError("The node died\nlast words")
        version, answer = reference.call()
        return (self.version, answer if version == self.version else None)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cores)}


def square(request: Request) -> Any:
    return {"status": "ok", "square": request["n"] ** 2}


def breaks(request: Request) -> Any:
    raise ZeroDivisionError("a bug")


SQUARE = f"{__name__}:square"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield fake
    assert signal.getsignal(signal.SIGTERM) == handler, "Ray's handler is still there"
    assert not fake.is_up


def requests(number: int) -> list[tuple[int, Request]]:
    return [(n, {"n": n}) for n in range(number)]


def test_every_request_is_answered_once(ray: FakeRay) -> None:
    with RayExecutor() as executor:
        answers = list(executor.run(SQUARE, requests(10)))
    assert sorted((index, answer["square"]) for index, answer in answers) == [
        (n, n**2) for n in range(10)
    ]
    assert ray.most_at_work == 2 and ray.options["address"] == "local"
    assert ray.options["include_dashboard"] is False and ray.options["log_to_driver"] is False


def test_what_was_lost_is_run_again_and_told_once(ray: FakeRay) -> None:
    ray.lost = [3, 3, 7, 0]
    with RayExecutor() as executor:
        answers = list(executor.run(SQUARE, requests(10)))
        assert executor.num_lost == 4
    assert sorted(index for index, _ in answers) == list(range(10))
    assert ray.started.count(3) == 3 and ray.started.count(7) == 2 and len(ray.started) == 14


def test_what_ends_every_worker_fails_alone(ray: FakeRay) -> None:
    ray.lost = [1] * 99
    with RayExecutor() as executor:
        answers = dict(executor.run(SQUARE, requests(4)))
    assert answers[1]["status"] == FAILED
    assert answers[1]["reason"] == f"{MAX_LOSSES} worker processes died over it: last words"
    assert [answers[n]["square"] for n in (0, 2, 3)] == [0, 4, 9]


def test_what_was_begun_is_finished_first(ray: FakeRay) -> None:
    def follow(index: int, answer: Any) -> list[tuple[int, Request]]:
        return [(index, {"n": answer["square"] + 1})] if answer["square"] < 20 else []

    with RayExecutor(jobs=1) as executor:
        asked = [(n, {"n": 1}) for n in range(3)]
        order = [index for index, _ in executor.run(SQUARE, asked, follow)]
    assert order == [0, 0, 0, 1, 1, 1, 2, 2, 2] and ray.most_at_work == 1


def test_machines_that_join_are_used(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter(range(100, 10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now_s)))
    with RayExecutor() as executor:
        answers = executor.run(SQUARE, requests(20))
        next(answers)
        assert ray.most_at_work == 2
        ray.cores = 7
        assert len(list(answers)) == 19
    assert ray.most_at_work == 7


def test_closing_asks_for_no_more_and_leaves_what_is_at_work_to_the_end(ray: FakeRay) -> None:
    with RayExecutor() as executor:
        answers = executor.run(SQUARE, requests(5))
        assert next(answers)[0] == 1
        answers.close()  # nothing is cancelled, which might end this process
        assert ray.started == [0, 1] and ray.is_up


def test_a_function_that_breaks_fails_its_trials(ray: FakeRay) -> None:
    with RayExecutor() as executor:
        answers = dict(executor.run(f"{__name__}:breaks", requests(2)))
    assert answers[1]["status"] == FAILED and answers[1]["reason"] == "ZeroDivisionError: a bug"


def test_another_version_on_the_workers_is_refused(ray: FakeRay) -> None:
    ray.version = "0.0.9"
    with (
        pytest.raises(ConfigError, match=r"a worker has dynosim 0\.0\.9, this is"),
        RayExecutor() as executor,
    ):
        list(executor.run(SQUARE, requests(1)))


def test_workers_without_dynosim_are_refused(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(reference: Any) -> Any:
        raise RayTaskError("long\nModuleNotFoundError: No module named 'dynosim'")

    monkeypatch.setattr(ray, "get", broken)
    with (
        pytest.raises(ConfigError, match=r"No module named 'dynosim' \(install dynosim"),
        RayExecutor() as executor,
    ):
        list(executor.run(SQUARE, requests(1)))


def test_ray_keeps_off_stdout(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    stdout = sys.stdout
    with RayExecutor():
        noise = threading.Thread(target=print, args=("raylet died",), name="ray_listen")
        noise.start()
        noise.join()
        print("ours")
    assert sys.stdout is stdout
    assert capsys.readouterr().out == "ours\n"


def test_a_missing_ray_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"Ray is not installed \(pip install 'dynosim\[ray\]'"):
        RayExecutor().__enter__()


@pytest.mark.parametrize("failure", [ConnectionError("no node\nmore"), SystemExit(15)])
def test_a_ray_that_cannot_start_is_one_message(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def init(**_: Any) -> None:
        raise failure

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConfigError, match=r"cannot start on this machine: (no node|15)$"):
        RayExecutor().__enter__()


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        RayExecutor(address).__enter__()


def test_a_cluster_that_is_not_there_is_refused_at_once(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConfigError, match=f"no Ray cluster at 127.0.0.1:{port}: .*refused"):
        RayExecutor(f"127.0.0.1:{port}").__enter__()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        RayExecutor().__enter__()
    assert ray.options == {}


def greeted(answer: bytes) -> tuple[socket.socket, int]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server, server.getsockname()[1]


def test_another_server_at_the_address_is_refused(ray: FakeRay) -> None:
    server, port = greeted(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with server, pytest.raises(ConfigError, match="something else answers there"):
        RayExecutor(f"127.0.0.1:{port}").__enter__()


def test_a_cluster_that_is_there_is_joined(ray: FakeRay) -> None:
    server, port = greeted(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    with server, RayExecutor(f"127.0.0.1:{port}"):
        assert ray.options == {
            "address": f"127.0.0.1:{port}", "logging_level": "error", "log_to_driver": False,
        }  # fmt: skip
