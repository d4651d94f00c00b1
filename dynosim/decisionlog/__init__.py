"""Logs of controllers that scale live deployments: what each saw, and what it decided."""
