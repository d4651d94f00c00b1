"""Discovery in Kubernetes against an API server of our own that speaks the recorded protocol.

It keeps DynamoWorkerMetadata objects and one EndpointSlice with resource versions, answers lists
and watches, wants a token, and collects what belongs to a pod that has ended.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.discovery import kubernetes
from dynosim_runtime.discovery.kubernetes import KubernetesDiscovery, ready_pods
from dynosim_runtime.discovery.make import make_discovery
from dynosim_runtime.errors import LiveError
from dynosim_runtime.testing.discovery import DiscoveryContract, DiscoveryPlace, Watcher, card_of

METADATA = "/apis/nvidia.com/v1alpha1/namespaces/inference/dynamoworkermetadatas"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/inference/endpointslices"
TOKEN = "a-token"


class FakeApiServer:
    """Objects by path and name, and whoever watches them."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {METADATA: {}, SLICES: {}}
        self.version = 100
        self.oldest_version = 0  # watches from before are refused as expired
        self.events: list[tuple[str, dict[str, Any]]] = []  # all there were, by path
        self.watchers: list[tuple[str, asyncio.Queue[dict[str, Any] | None]]] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        for path in self.objects:
            app.router.add_get(path, self._get_all)
            app.router.add_post(path, self._post)
            app.router.add_route("*", path + "/{name}", self._one)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        assert self._runner is not None
        self.end_watches()
        await self._runner.cleanup()

    def end_watches(self) -> None:
        for _, queue in self.watchers:
            queue.put_nowait(None)

    def put(self, path: str, item: dict[str, Any]) -> dict[str, Any]:
        """Store an object and tell the watchers."""
        self.version += 1
        name = item["metadata"]["name"]
        kind = "MODIFIED" if name in self.objects[path] else "ADDED"
        item["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path][name] = item
        self._tell(path, kind, item)
        return item

    def delete(self, path: str, name: str) -> None:
        self.version += 1
        item = self.objects[path].pop(name)
        item["metadata"]["resourceVersion"] = str(self.version)
        self._tell(path, "DELETED", item)

    def set_ready(self, pod: str, is_ready: bool | None) -> None:
        """What the kubelet's probe says of a pod; None: the pod has ended."""
        known = self.objects[SLICES].get("workers", {"endpoints": []})["endpoints"]
        endpoints = [each for each in known if each["targetRef"]["name"] != pod]
        if is_ready is not None:
            reference = {"kind": "Pod", "name": pod, "namespace": "inference"}
            endpoints.append(
                {
                    "addresses": ["10.0.0.7"],
                    "conditions": {"ready": is_ready, "serving": is_ready, "terminating": False},
                    "targetRef": reference,
                }
            )
        else:
            for name, item in list(self.objects[METADATA].items()):
                owners = item["metadata"].get("ownerReferences", [])
                if any(owner["uid"] == f"uid-of-{pod}" for owner in owners):
                    self.delete(METADATA, name)
        self.put(SLICES, {"metadata": {"name": "workers"}, "endpoints": endpoints})

    def _tell(self, path: str, kind: str, item: dict[str, Any]) -> None:
        event = {"type": kind, "object": json.loads(json.dumps(item))}
        self.events.append((path, event))
        for watched, queue in self.watchers:
            if watched == path:
                queue.put_nowait(event)

    async def _get_all(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return status(401, "Unauthorized")
        if request.query.get("watch") == "true":
            return await self._watch(request)
        items = list(self.objects[request.path].values())
        return web.json_response(
            {"metadata": {"resourceVersion": str(self.version)}, "items": items}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        version = int(request.query["resourceVersion"])
        if version < self.oldest_version:
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        for path, event in self.events:
            if (
                path == request.path
                and int(event["object"]["metadata"]["resourceVersion"]) > version
            ):
                queue.put_nowait(event)
        self.watchers.append((request.path, queue))
        bookmark = {"metadata": {"resourceVersion": str(self.version)}}
        queue.put_nowait({"type": "BOOKMARK", "object": bookmark})
        while (news := await queue.get()) is not None:
            line = json.dumps(news).encode() + b"\n"
            await response.write(line[:20])  # a line may come in parts
            await response.write(line[20:])
        return response

    async def _post(self, request: web.Request) -> web.Response:
        item = await request.json()
        if item["metadata"]["name"] in self.objects[request.path]:
            return status(409, "already exists")
        return web.json_response(self.put(request.path, item), status=201)

    async def _one(self, request: web.Request) -> web.Response:
        path, _, name = request.path.rpartition("/")
        known = self.objects[path].get(name)
        if known is None:
            return status(404, "not found")
        if request.method == "PUT":
            item = await request.json()
            if item["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
                return status(409, "the object has been modified")
            return web.json_response(self.put(path, item))
        if request.method == "DELETE":
            self.delete(path, name)
            return status(200, "deleted")
        return web.json_response(known)


def status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


class ClusterPlace(DiscoveryPlace):
    """A name space of the fake cluster, in which every pod is ready."""

    lease_s = 0.3

    def __init__(self, api: FakeApiServer, token_file: Path) -> None:
        self.api = api
        self._token_file = token_file

    def discovery(self, name: str) -> KubernetesDiscovery:
        if name != "frontend":
            self.api.set_ready(name, True)
        place = kubernetes.Place(
            api_url=self.api.url,
            namespace="inference",
            token_file=self._token_file,
            pod_name=name,
            pod_uid=f"uid-of-{name}",
        )
        return KubernetesDiscovery(place)

    async def start_worker(self, card: LiveCard) -> Callable[[], Awaitable[None]]:
        discovery = self.discovery(card.name)
        await discovery.register(card)
        await discovery.close()

        async def kill() -> None:
            self.api.set_ready(card.name, None)

        return kill


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[ClusterPlace]:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    api = FakeApiServer()
    await api.start()
    yield ClusterPlace(api, token_file)
    await api.stop()


class TestKubernetesDiscovery(DiscoveryContract):
    async def test_a_card_is_visible_only_while_its_pod_is_ready(self, place: ClusterPlace) -> None:
        place.api.set_ready("b", True)  # ready, but without a card
        worker, frontend = place.discovery("a"), place.discovery("frontend")
        place.api.set_ready("a", False)
        await worker.register(card_of("a"))
        watcher = Watcher(frontend.watch())
        await watcher.until(lambda cards: cards == {})
        place.api.set_ready("a", True)
        await watcher.until(lambda cards: set(cards) == {worker_id_of("a")})
        place.api.set_ready("a", False)
        await watcher.until(lambda cards: cards == {})
        await watcher.close()

    async def test_a_container_that_restarts_in_its_pod_takes_its_card_over(
        self, place: ClusterPlace
    ) -> None:
        await place.discovery("a").register(card_of("a"))
        await place.discovery("a").register(card_of("a", total_kv_blocks=3))
        watcher = Watcher(place.discovery("frontend").watch())
        (card,) = (await watcher.until(bool)).values()
        assert card.total_kv_blocks == 3
        await watcher.close()

    async def test_a_watch_goes_on_when_the_server_ends_it_or_forgets_its_version(
        self, place: ClusterPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kubernetes, "RETRY_S", 0.01)
        watcher = Watcher(place.discovery("frontend").watch())
        await watcher.until(lambda cards: cards == {})
        place.api.end_watches()
        await place.discovery("a").register(card_of("a"))
        await watcher.until(lambda cards: set(cards) == {worker_id_of("a")})
        place.api.oldest_version = place.api.version + 1
        place.api.end_watches()
        place.api.set_ready("a", False)
        await watcher.until(lambda cards: cards == {})
        await watcher.close()

    async def test_an_object_without_our_card_is_passed_over(
        self, place: ClusterPlace, caplog: pytest.LogCaptureFixture
    ) -> None:
        for pod, data in (("x", {"model_cards": {}}), ("y", {"model_cards": {"k": {"name": 1}}})):
            place.api.set_ready(pod, True)
            place.api.put(METADATA, {"metadata": {"name": pod}, "spec": {"data": data}})
        await place.discovery("a").register(card_of("a"))
        watcher = Watcher(place.discovery("frontend").watch())
        await watcher.until(lambda cards: set(cards) == {worker_id_of("a")})
        place.api.set_ready("x", False)
        place.api.set_ready("a", False)
        await watcher.until(lambda cards: cards == {})
        reports = [record.message for record in caplog.records if "no card" in record.message]
        assert len(reports) == 4  # by the worker and by the frontend: each object once
        await watcher.close()

    async def test_the_custom_resource_has_dynamos_shape(self, place: ClusterPlace) -> None:
        await place.discovery("a").register(card_of("a"))
        item = place.api.objects[METADATA]["a"]
        assert (item["apiVersion"], item["kind"]) == ("nvidia.com/v1alpha1", "DynamoWorkerMetadata")
        assert item["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": "a",
                "uid": "uid-of-a",
                "controller": True,
            }
        ]
        endpoint = item["spec"]["data"]["endpoints"]["dynosim/backend/generate"]
        assert endpoint["instance_id"] == worker_id_of("a")

    async def test_a_refused_token_is_told(self, place: ClusterPlace, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("another")
        with pytest.raises(LiveError, match="Unauthorized"):
            await place.discovery("a").register(card_of("a"))
        with pytest.raises(LiveError, match="Unauthorized"):
            await anext(aiter(place.discovery("frontend").watch()))


def test_ready_is_what_the_slice_says_and_the_default() -> None:
    def endpoint(name: str, conditions: dict[str, bool] | None) -> dict[str, Any]:
        return {"conditions": conditions, "targetRef": {"kind": "Pod", "name": name}}

    slices = [
        {"endpoints": [endpoint("a", {"ready": True}), endpoint("b", {"ready": False})]},
        {"endpoints": None},
        {"endpoints": [endpoint("c", None), endpoint("d", {}), {"addresses": ["10.0.0.1"]}]},
    ]
    assert ready_pods(slices) == {"a", "c", "d"}


def test_outside_of_a_cluster_kubernetes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(LiveError, match="runs in no pod"):
        make_discovery("kubernetes:inference", 5.0)
