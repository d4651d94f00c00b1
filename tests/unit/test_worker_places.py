"""Labels and places of one live worker: the plan's, and those that its command adds."""

import pytest
from test_launch_specs import plan

from dynosim.cli import main
from dynosim.errors import ConfigError
from dynosim_runtime.worker.command import with_places


def test_what_the_command_says_is_added_to_the_plan() -> None:
    config = plan(live={"taints": ["a", "b"], "topology": {"zone": "z", "row": "1"}})
    live = with_places(config, ["b", "c"], ["zone=y", "rack=r=1"]).live
    assert live.taints == ("a", "b", "c")
    assert live.topology == {"zone": "y", "row": "1", "rack": "r=1"}
    assert with_places(config, [], []) == config


@pytest.mark.parametrize("given", ["zone", "=a", "zone="])
def test_a_place_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="expected DOMAIN=VALUE"):
        with_places(plan(), [], [given])
    with pytest.raises(ConfigError, match="must not be empty"):
        with_places(plan(), [""], [])


def test_two_words_on_where_a_worker_is_are_one_too_many() -> None:
    both = {"cluster": {"topology": {"zone": ["a"]}}, "live": {"topology": {"zone": "b"}}}
    with pytest.raises(ConfigError, match=r"live.topology.zone: stated beside the cluster's"):
        plan(**both)
    plan(**both | {"live": {"topology": {"row": "b"}}})


def test_the_commands_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "worker", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--taint" in text and "DOMAIN=VALUE" in text
