"""The list of a report's numbers, for those who must know them without making one."""

from toy_runs import toy_run

from dynosim.config.report_keys import is_report_key, known_report_keys
from dynosim.metrics import PROCESS_KEYS, summarize

WORDS = {"saturated", "saturation_reason", "timing_source", "timing_description", "timing_notes"}
GIVEN = {"gpus_per_worker", "block_size", "steady_start_ms", "steady_end_ms"}
EFFORT = {"num_steps", "num_scheduling_events"}
NOT_SOUGHT = {
    "first_admission_prefix_cache_reused_ratio",  # Dynamo's name for a number that is listed
    "num_ttft_samples",
    "num_tpot_samples",
    "num_itl_samples",
    "num_e2e_latency_samples",
    "steady_offered_rps",
    "steady_num_requests",
    "saturation_wait_growth",
    "saturation_backlog_share",
    "saturation_drain_ms",
    "saturation_more_in_system",
}


def test_every_number_of_a_report_is_known_or_known_not_to_be_sought() -> None:
    run = toy_run(20)
    report = summarize(run.result, run.timing, sla=None, wall_time_ms=0.0)
    others = WORDS | GIVEN | EFFORT | NOT_SOUGHT | set(PROCESS_KEYS)
    counters = {key for key in report if key.startswith(("index_", "kv_events_", "kv_event_"))}
    counters -= {"index_blocks"}
    assert set(known_report_keys()) == set(report) - others - counters
    assert len(known_report_keys()) == len(set(known_report_keys()))


def test_a_key_is_one_of_the_list() -> None:
    assert is_report_key("p99_itl_ms") and is_report_key("steady_p90_ttft_ms")
    assert not is_report_key("p98_itl_ms") and not is_report_key("steady_p75_ttft_ms")
    assert not is_report_key("saturation_reason")
