"""Drafts of a recorded scenario: what a drafter and a model would make of a text, by numbers.

vLLM is given drafts without meaning, and outputs of as many tokens as the scenario accepts.
"""

from itertools import cycle, islice
from typing import Any

from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig
from vllm.v1.outputs import DraftTokenIds

Json = dict[str, Any]


def speculative_config(spec: Json, model: ModelConfig, folder: str) -> SpeculativeConfig:
    """The section `spec` of an engine as vLLM's configuration.

    EAGLE is made as a draft model, since it would want a checkpoint, and renamed by the caller.
    """
    drafter = {"method": "draft_model", "model": folder}
    if spec.get("method", "ngram") == "ngram":
        drafter = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 1}
    return SpeculativeConfig(
        num_speculative_tokens=spec["k"],
        target_model_config=model,
        target_parallel_config=ParallelConfig(),
        **drafter,
    )


class VllmDrafts:
    """Counts the drafts of a scenario's requests; says how many are accepted and offered."""

    def __init__(self, scenario: Json) -> None:
        spec = scenario["engine"]["spec"]
        self.most = spec["k"]
        self.numbers: dict[str, dict[str, list[int]]] = {
            kind: {
                request["id"]: request.get(kind) or spec.get(kind) or [self.most]
                for request in scenario["requests"]
            }
            for kind in ("accept", "drafts")
        }
        self.num_used: dict[tuple[str, str], int] = {}
        self.counts: dict[str, Json] = {
            request["id"]: {"drafts": 0, "accepted": 0} for request in scenario["requests"]
        }

    def _next(self, kind: str, name: str) -> int:
        used = self.num_used.get((kind, name), 0)
        self.num_used[kind, name] = used + 1
        return next(islice(cycle(self.numbers[kind][name]), used, None))

    def scheduled(self, line: Json, output: Any, admitted: set[str]) -> dict[str, int]:
        """A call of `schedule` has let drafts be verified; returns how many are accepted."""
        accepted = {}
        for name, drafts in output.scheduled_spec_decode_tokens.items():
            num_drafts, accepted[name] = len(drafts), 0
            if name in admitted:
                line.setdefault("pad", []).append(name)
            else:
                accepted[name] = min(self._next("accept", name), num_drafts)
                self.counts[name]["drafts"] += num_drafts
                self.counts[name]["accepted"] += accepted[name]
        rows = [
            [name, len(output.scheduled_spec_decode_tokens[name]), accepted[name], 0]
            for name in output.num_scheduled_tokens
            if name in accepted
        ]
        if rows:
            line["spec"] = rows
        return accepted

    def offer(self, scheduler: Any, names: list[str]) -> None:
        """Requests have got tokens: drafts for what comes next."""
        numbers = [min(self._next("drafts", name), self.most) for name in names]
        scheduler.update_draft_token_ids(DraftTokenIds(names, [[1] * n for n in numbers]))
