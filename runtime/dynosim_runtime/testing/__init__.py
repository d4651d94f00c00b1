"""For tests: doubles of what stands behind a frontend, and the contract of a discovery."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.discovery")
