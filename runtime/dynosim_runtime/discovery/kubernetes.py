"""Discovery in Kubernetes: a worker is visible when its pod is ready and its card is there.

The card is in a custom resource DynamoWorkerMetadata that is named after the worker's pod and
belongs to it, so that Kubernetes removes it with the pod; readiness is what the EndpointSlices
say. There is no lease of our own: the kubelet's readiness probe takes its place. One worker a pod.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from dynosim_runtime.card import LiveCard
from dynosim_runtime.discovery.kubernetes_api import ApiServer, Collection, KubernetesError
from dynosim_runtime.errors import LiveError
from dynosim_runtime.outage import Outage

GROUP = "nvidia.com/v1alpha1"
KIND = "DynamoWorkerMetadata"
SLICES = "discovery.k8s.io/v1"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RETRY_S = 1.0
CONFLICT = 409
NOT_FOUND = 404

log = logging.getLogger(__name__)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where we are in a cluster; without a pod of our own, only `watch` makes sense."""

    api_url: str
    namespace: str
    token_file: Path | None = None  # read for each call, as Kubernetes renews it
    ca_file: Path | None = None
    pod_name: str | None = None  # None: the card's name
    pod_uid: str | None = None


def in_cluster(namespace: str | None = None) -> Place:
    """The cluster that this process runs in, from what Kubernetes puts into each pod.

    Raises: LiveError outside of a cluster.
    """
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
    token = SERVICE_ACCOUNT / "token"
    if not host or not token.exists():
        raise LiveError(
            "discovery kubernetes: this process runs in no pod with a service account "
            "(use file:DIR or etcd:HOST:PORT outside of Kubernetes)"
        )
    own_namespace = SERVICE_ACCOUNT / "namespace"
    host = f"[{host}]" if ":" in host else host
    return Place(
        api_url=f"https://{host}:{port or 443}",
        namespace=namespace or os.environ.get("POD_NAMESPACE") or own_namespace.read_text().strip(),
        token_file=token,
        ca_file=SERVICE_ACCOUNT / "ca.crt",
        pod_name=os.environ.get("POD_NAME"),
        pod_uid=os.environ.get("POD_UID"),
    )


class KubernetesDiscovery:
    """Cards of the pods of one name space."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._api = ApiServer(place.api_url, token_file=place.token_file, ca_file=place.ca_file)
        space = f"namespaces/{place.namespace}"
        self._metadata_path = f"/apis/{GROUP}/{space}/dynamoworkermetadatas"
        self._slices_path = f"/apis/{SLICES}/{space}/endpointslices"
        self._reported: set[str] = set()

    async def register(self, card: LiveCard) -> "KubernetesRegistration":
        """Publish a card in the name of this pod.

        Raises: LiveError if another ready pod has this worker id, or the API server refuses.
        """
        name = self._place.pod_name or card.name
        registration = KubernetesRegistration(self, name)
        try:
            await self._refuse_duplicate(name, card)
            await registration.write(card)
        except KubernetesError as error:
            raise LiveError(f"worker {card.name}: {error}") from None
        return registration

    async def _refuse_duplicate(self, name: str, card: LiveCard) -> None:
        """Raises: LiveError if a ready pod has the id; one that restarted in this pod does not."""
        objects = await self._api.list(self._metadata_path)
        ready = ready_pods(await self._api.list(self._slices_path))
        for other in objects:
            pod, uid = other["metadata"]["name"], owner_uid(other)
            is_ourselves = pod == name and uid is not None and uid == self._place.pod_uid
            known = self._card(other)
            if known is None or known.worker_id != card.worker_id or is_ourselves:
                continue
            if pod in ready:
                raise LiveError(
                    f"worker {card.name}: pod {pod} already has worker id {card.worker_id} in "
                    f"{self._place.namespace}; give one of them another --name"
                )

    async def watch(self) -> AsyncIterator[dict[int, LiveCard]]:
        """The cards of all ready pods by worker id, at once and then after every change.

        Raises: LiveError if the API server cannot be reached at first; later, it is tried again.
        """
        metadata = Collection(self._api, self._metadata_path)
        slices = Collection(self._api, self._slices_path)
        changed = asyncio.Event()
        try:
            await metadata.load()
            await slices.load()
        except KubernetesError as error:
            raise LiveError(str(error)) from None
        followers = [asyncio.create_task(_follow(each, changed)) for each in (metadata, slices)]
        last: dict[int, LiveCard] | None = None
        try:
            while True:
                changed.clear()
                cards = self._visible(metadata, slices)
                if cards != last:
                    last = cards
                    yield dict(cards)
                await changed.wait()
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)

    async def close(self) -> None:
        """Release connections."""
        await self._api.close()

    async def put(self, name: str, card: LiveCard) -> None:
        """Create or replace this pod's object. Raises: KubernetesError."""
        body = self._object(name, card)
        try:
            await self._api.call("POST", self._metadata_path, body)
        except KubernetesError as error:
            if error.status != CONFLICT:
                raise
            path = f"{self._metadata_path}/{name}"
            known = await self._api.call("GET", path)
            body["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"]
            await self._api.call("PUT", path, body)

    async def remove(self, name: str) -> None:
        """Delete this pod's object, if it is there. Raises: KubernetesError."""
        try:
            await self._api.call("DELETE", f"{self._metadata_path}/{name}")
        except KubernetesError as error:
            if error.status != NOT_FOUND:
                raise

    def _object(self, name: str, card: LiveCard) -> dict[str, Any]:
        """The custom resource in Dynamo's shape; our card is its model card."""
        key = f"{card.namespace}/{card.component}/{card.endpoint}"
        endpoint = {
            "type": "Endpoint",
            "namespace": card.namespace,
            "component": card.component,
            "endpoint": card.endpoint,
            "instance_id": card.worker_id,
            "transport": {"http": card.url},
        }
        metadata: dict[str, Any] = {"name": name, "namespace": self._place.namespace}
        if self._place.pod_uid is not None:
            pod = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": self._place.pod_uid}
            metadata["ownerReferences"] = [{**pod, "controller": True}]
        cards = {key: msgspec.to_builtins(card)}
        return {
            "apiVersion": GROUP,
            "kind": KIND,
            "metadata": metadata,
            "spec": {"data": {"endpoints": {key: endpoint}, "model_cards": cards}},
        }

    def _visible(self, metadata: Collection, slices: Collection) -> dict[int, LiveCard]:
        ready = ready_pods(slices.objects.values())
        cards: dict[int, LiveCard] = {}
        for name, item in sorted(metadata.objects.items()):
            card = self._card(item) if name in ready else None
            if card is not None:
                cards[card.worker_id] = card
        return cards

    def _card(self, item: dict[str, Any]) -> LiveCard | None:
        """Our card in a custom resource; None, and a report once, if it has none."""
        name = item["metadata"]["name"]
        try:
            (card,) = item["spec"]["data"]["model_cards"].values()
            return msgspec.convert(card, LiveCard)
        except (KeyError, TypeError, ValueError, AttributeError, msgspec.ValidationError) as error:
            if name not in self._reported:
                self._reported.add(name)
                log.warning("%s %s has no card of dynosim, passed over: %s", KIND, name, error)
            return None


class KubernetesRegistration:
    """A card in this pod's custom resource."""

    def __init__(self, discovery: KubernetesDiscovery, name: str) -> None:
        self._discovery = discovery
        self._name = name
        self._worker_id: int | None = None
        self._is_closed = False

    async def write(self, card: LiveCard) -> None:
        """Publish the card. Raises: KubernetesError."""
        await self._discovery.put(self._name, card)
        self._worker_id = card.worker_id

    async def update(self, card: LiveCard) -> None:
        """Publish a changed card. Raises: LiveError if the API server refuses."""
        if card.worker_id != self._worker_id:
            raise ValueError(f"card of worker {card.worker_id}, not {self._worker_id}")
        try:
            await self.write(card)
        except KubernetesError as error:
            raise LiveError(f"worker {card.name}: {error}") from None

    async def close(self) -> None:
        """Take the card away at once; if that fails, Kubernetes does so with the pod."""
        if self._is_closed:  # the pod's card may be another registration's by now
            return
        self._is_closed = True
        try:
            await self._discovery.remove(self._name)
        except KubernetesError as error:
            log.warning("%s %s stays until its pod ends: %s", KIND, self._name, error)


def ready_pods(slices: Any) -> set[str]:
    """Names of the pods that any of the EndpointSlices says are ready (said by default)."""
    return {
        endpoint["targetRef"]["name"]
        for each in slices
        for endpoint in each.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready") is not False
        and (endpoint.get("targetRef") or {}).get("kind") == "Pod"
    }


def owner_uid(item: dict[str, Any]) -> str | None:
    """The unique id of the pod that an object belongs to."""
    owners = item["metadata"].get("ownerReferences") or [{}]
    uid: str | None = owners[0].get("uid")
    return uid


async def _follow(collection: Collection, changed: asyncio.Event) -> None:
    """Keep a collection up to date for good, whatever the API server does."""
    loading = Outage(log, f"Kubernetes, {collection.path}", (KubernetesError,))
    while True:
        try:
            async for _ in collection.follow():
                changed.set()
        except KubernetesError:
            pass  # too old a version, or the connection: read anew
        except Exception as error:  # an answer of a form that nobody has foreseen
            loading.failed(error)
        await asyncio.sleep(RETRY_S)
        try:
            await collection.load()
            changed.set()
            loading.worked()
        except Exception as error:
            loading.failed(error)
