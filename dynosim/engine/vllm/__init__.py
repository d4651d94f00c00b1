"""vLLM's V1 scheduler as pure decisions: which request computes how many tokens in which step.

It follows vLLM 0.32 (`v1/core/sched`): one full-attention KV cache group.
It knows no clock: a driver asks for a plan, lets it take as long as its timing model says, and
hands it back. `loop` is vLLM's own loop, request by request, and says all there is to say. The
rest makes it fast or late, and property tests hold it equal to the loop:

* `foreseen`: what the loop would do with the running list, where nothing is short;
* `bulk`: uniform decode steps, many at once;
* `asynchronous`: a step is planned before the tokens of the one before are known;
* `remote`: requests whose KV comes from elsewhere or goes elsewhere;
* `under_way`: what then must not happen to blocks that a step still writes;
* `offload`: a tier in host memory, step by step only;
* `speculation`: drafts that are verified, step by step only;
* `scheduler`: these together, as the `EngineCore` that drivers know.
"""

from dynosim.engine.vllm.scheduler import VllmScheduler

__all__ = ["VllmScheduler"]
