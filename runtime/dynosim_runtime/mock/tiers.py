"""Which tiers below the device a simulated engine has when it runs by itself."""

from dynosim.config.cluster import TiersConfig
from dynosim.errors import ConfigError


def check_mock_tiers(tiers: TiersConfig | None) -> None:
    """Raises: ConfigError for tiers that simulated engines do not have, each being on its own."""
    if tiers is None:
        return
    shared = tiers.host is not None and tiers.host.scope != "worker"
    for key, is_asked_for in (
        ("host.scope", shared),
        ("host", tiers.host is None),
        ("peers_gb_s", tiers.peers_gb_s is not None),
        ("disk", tiers.disk is not None),
        ("remote", tiers.remote is not None),
        ("onboard", tiers.onboard != "always"),
    ):
        if is_asked_for:
            raise ConfigError(
                f"cluster.tiers.{key}: a simulated engine behind a live frontend has a host tier "
                "of its own and nothing beyond (state `host` alone, or simulate the whole run)"
            )
