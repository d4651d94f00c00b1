"""How a trial ends."""

OK = "ok"
INFEASIBLE = "infeasible"  # the point cannot be run, for a reason that is given
SCREENED = "screened"  # it was not tried: a screen ranks it behind those that were
FAILED = "failed"  # it crashed
BAD_INPUT = "bad_input"  # every trial would meet it: the sweep stops, nothing is recorded
