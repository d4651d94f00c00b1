"""Contracts for what plugs into dynosim: inherit one in a test, and your implementation keeps it.

Each contract is a class of tests for pytest. The heir supplies the fixture that its docstring
names, of class scope or wider, and gets every test:

    class TestMyIndex(IndexContract):
        @pytest.fixture(scope="class")
        @classmethod
        def make_index(cls):
            return MyIndex

They need what `pip install dynosim[test]` installs, and nothing else in dynosim imports them.
"""

import pytest
from hypothesis import HealthCheck, Phase, settings

for _name in ("block_events", "engine_core", "index", "placement", "step_times"):
    pytest.register_assert_rewrite(f"{__name__}.{_name}")


def law(max_examples: int) -> settings:
    """A law that many classes inherit, on machines that may be busy.

    What fails is a seed, mostly: there is nothing to shrink.
    """
    return settings(
        max_examples=max_examples,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
