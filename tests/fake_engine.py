"""A stand-in for vLLM's server: its command line, its few pages, a helper process, no model.

`install` writes it as a package `vllm`; what it does is told by files in its folder:
`hang` (never ready), `crash` (ends before it is ready), `busy` (a request is under way),
`page` (the text of /metrics).
"""

from pathlib import Path

SERVER = """
import http.server, json, os, pathlib, subprocess, sys, threading, time

folder = pathlib.Path(os.environ["FAKE_ENGINE"])
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("loading the model", flush=True)
if (folder / "crash").exists():
    print("RuntimeError: no such kernel", flush=True)
    sys.exit(3)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "pids").write_text(f"{os.getpid()} {helper.pid}")
(folder / "argv").write_text(json.dumps(sys.argv[1:]))

def metrics():
    page = folder / "page"
    running = 1.0 if (folder / "busy").exists() else 0.0
    cache = page.read_text() if page.exists() else 'block_size="16",num_gpu_blocks="101"'
    return (
        "# TYPE vllm:num_requests_running gauge\\n"
        f'vllm:num_requests_running{{engine="0"}} {running}\\n'
        "# TYPE vllm:num_requests_waiting gauge\\n"
        'vllm:num_requests_waiting{engine="0"} 0.0\\n'
        "# TYPE vllm:cache_config_info gauge\\n"
        f"vllm:cache_config_info{{{cache}}} 1.0\\n"
    )

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health" and (folder / "hang").exists():
            return self.send_error(503)
        model = {"id": "tiny", "max_model_len": 1600}
        pages = {"/health": "", "/metrics": metrics(), "/v1/models": json.dumps({"data": [model]})}
        body = pages[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def install(folder: Path) -> dict[str, str]:
    """Write the package into `folder`; returns the environment that makes it `vllm`."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER)
    return {"PYTHONPATH": str(folder), "FAKE_ENGINE": str(folder)}
