"""Stands in for `dynosim serve worker|frontend`: registers a card, or answers /live and /workers.

FAKES, JSON in the environment, says who misbehaves: {"worker-1": ["exit-3", ...], ...}, one word
per start, the last one for all later starts: `exit-N` at once, `hang` (never ready), `stubborn`
(ignores SIGTERM), `helper` (starts a process that moves to a session of its own), `talk-N-M` (says
N lines, then ends with M).
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from dynosim_runtime.card import LiveCard, worker_id_of
from dynosim_runtime.discovery.file import FileDiscovery

running: list[object] = []  # what must not be thrown away


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def behaviour(name: str, folder: Path) -> str:
    """The word for this start."""
    starts = folder / f"{name}.starts"
    number = len(starts.read_text()) if starts.exists() else 0
    starts.write_text("x" * (number + 1))
    words = json.loads(os.environ.get("FAKES", "{}")).get(name, [""])
    return str(words[min(number, len(words) - 1)])


async def run() -> int:
    folder = Path(option("--discovery").removeprefix("file:"))
    folder.mkdir(parents=True, exist_ok=True)
    role = sys.argv[2]
    name = option("--name") if role == "worker" else "frontend"
    word = behaviour(name, folder)
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: word != "stubborn" and told_to_stop.set())
    print(f"{name} {word} cuda={os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    if word.startswith("exit-"):
        print("the reason is here", flush=True)
        return int(word.removeprefix("exit-"))
    if word.startswith("talk-"):
        _, num_lines, code = word.split("-")
        print(*(f"line {number} of many, and more words" for number in range(int(num_lines))),
              sep="\n")  # fmt: skip
        return int(code)
    if word == "helper":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)  # fmt: skip
    if word != "hang":
        await (worker(name, folder) if role == "worker" else frontend(folder))
    await told_to_stop.wait()
    print(f"{name} stops", flush=True)
    return 0


async def worker(name: str, folder: Path) -> None:
    card = LiveCard(
        worker_id=worker_id_of(name), name=name, engine="mock", url="http://127.0.0.1:1",
        model="m", block_size=16, max_model_len=64, pid=os.getpid(),
    )  # fmt: skip
    await FileDiscovery(folder, 5.0).register(card)


async def frontend(folder: Path) -> None:
    """Answers by hand: a server's library would take longer to load than all the rest."""
    cards: dict[int, LiveCard] = {}

    async def watch() -> None:
        async for cards_now in FileDiscovery(folder, 5.0).watch():
            cards.clear()
            cards.update(cards_now)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
                rows = [{"name": card.name} for card in cards.values()]
                body = json.dumps({"workers": rows} if path == b"/workers" else {}).encode()
                status = b"200 OK" if cards or path == b"/live" else b"503 Service Unavailable"
                head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                writer.write(head + body)
                await writer.drain()
        writer.close()

    running.append(asyncio.create_task(watch()))
    running.append(await asyncio.start_server(answer, "127.0.0.1", int(option("--port"))))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(run()))
