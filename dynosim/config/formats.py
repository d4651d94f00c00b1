"""Names and versions of the documents that dynosim writes, as their `schema` key has them.

The number rises when a stable key changes its meaning or goes.
"""

REPORT_SCHEMA = "dynosim.report/1"
"""report.json of a run."""
SWEEP_SCHEMA = "dynosim.sweep/2"
"""summary.json of a sweep."""
VALIDATION_SCHEMA = "dynosim.validation/1"
"""validation.json."""
DEPLOYMENT_SCHEMA = "dynosim.deployment/1"
"""deployment.json, and what `dynosim deploy --json` prints."""
PLAN_SCHEMA = "dynosim.plan/1"
"""report.json of a comparison of controllers."""
