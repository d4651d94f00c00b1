"""Which tiers below the device a simulated engine has when it runs by itself."""

from dynosim.config.cluster import TiersConfig
from dynosim.errors import ConfigError


def check_mock_tiers(tiers: TiersConfig | None) -> None:
    """Raises: ConfigError for tiers that simulated engines do not have, each being on its own."""
    key = None if tiers is None else tiers.beyond_own_host()
    if key is not None:
        raise ConfigError(
            f"cluster.tiers.{key}: a simulated engine behind a live frontend has a host tier of "
            "its own and nothing beyond (state `host` alone, or simulate the whole run)"
        )
