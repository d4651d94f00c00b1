"""How many requests `dynosim validate` sends before those that count."""

from inspect import signature

from dynosim.cli.live import validate


def test_as_many_requests_warm_up_as_the_field_asks_for() -> None:
    """AIPerf's recipes and AIConfigurator's ask for at least forty."""
    assert signature(validate).parameters["warmup"].default == 40
