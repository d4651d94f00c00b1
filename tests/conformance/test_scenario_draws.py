"""Scenarios for the recorder: the same for a seed, well formed, and of every kind."""

from scenario_draws import (
    draw_offload_scenario,
    draw_remote_scenario,
    draw_scenario,
    draw_spec_scenario,
)

from dynosim.conformance.scenario import check_request, check_timing, prompt_tokens_of, spec_of


def test_a_scenario_depends_on_its_seed_and_number_only() -> None:
    several = [draw_scenario(3, number) for number in range(5)]
    assert draw_scenario(3, 4) == several[4]
    assert several[3] != several[4] != draw_scenario(4, 4)


def test_scenarios_are_well_formed_and_of_every_kind() -> None:
    scenarios = [draw_scenario(1, number) for number in range(200)]
    specs = [spec_of(scenario["engine"]) for scenario in scenarios]
    assert {len(scenario["requests"]) for scenario in scenarios} == set(range(2, 31))
    for scenario, spec in zip(scenarios, specs, strict=True):
        check_timing(scenario.get("timing") or {})
        for request in scenario["requests"]:
            check_request(request)
            assert prompt_tokens_of(request) and request["output_length"] > 0
        assert spec.max_num_seqs <= spec.max_num_batched_tokens
    kinds = {(s.async_scheduling, s.policy, s.enable_prefix_caching) for s in specs}
    assert len(kinds) == 8
    assert {s.enable_chunked_prefill for s in specs} == {True, False}
    assert {s.scheduler_reserve_full_isl for s in specs} == {True, False}
    assert {bool(s.long_prefill_token_threshold) for s in specs} == {True, False}
    assert {bool(s.watermark) for s in specs} == {True, False}


def test_scenarios_with_transfers_are_well_formed_and_of_every_kind() -> None:
    scenarios = [draw_remote_scenario(1, number) for number in range(100)]
    specs = [spec_of(scenario["engine"]) for scenario in scenarios]
    assert draw_remote_scenario(1, 4) == scenarios[4]
    roles = {(spec.kv_role, spec.kv_load_failure_policy, spec.async_scheduling) for spec in specs}
    assert len(roles) == 12
    requests = [request for scenario in scenarios for request in scenario["requests"]]
    for request in requests:
        check_request(request)
    assert any("abort" in request for request in requests)
    remotes = [request["remote"] for request in requests if "remote" in request]
    assert {key for remote in remotes for key in remote} == {
        "recv",
        "tokens",
        "send",
        "delay",
        "fail",
    }


def test_scenarios_with_a_host_tier_are_well_formed_and_of_every_kind() -> None:
    scenarios = [draw_offload_scenario(1, number) for number in range(100)]
    assert draw_offload_scenario(1, 4) == scenarios[4]
    tiers = [spec_of(scenario["engine"]).host_cache for scenario in scenarios]
    assert {tier.policy for tier in tiers if tier} == {"lru", "arc"}
    assert {tier.blocks_per_chunk for tier in tiers if tier} == {1, 2, 3}
    assert {tier.store_threshold for tier in tiers if tier} == {0, 1, 2, 3}
    assert {tier.prompt_only for tier in tiers if tier} == {True, False}
    assert any("abort" in request for scenario in scenarios for request in scenario["requests"])


def test_scenarios_with_drafts_are_well_formed_and_of_every_kind() -> None:
    scenarios = [draw_spec_scenario(1, number) for number in range(100)]
    assert draw_spec_scenario(1, 4) == scenarios[4]
    specs = [spec_of(scenario["engine"]) for scenario in scenarios]
    kinds = {(s.speculation.method, s.async_scheduling) for s in specs if s.speculation}
    assert len(kinds) == 5  # n-grams never run asynchronously
    company = {(s.kv_role is not None, s.host_cache is not None) for s in specs}
    assert company == {(False, False), (True, False), (False, True)}
    requests = [request for scenario in scenarios for request in scenario["requests"]]
    for request in requests:
        check_request(request, has_drafts=True)
    assert any("accept" in request for request in requests)
    assert any("drafts" in request for request in requests)
