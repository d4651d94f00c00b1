"""Who decides how many workers there are: planner, HPA, KEDA. Pure: facts in, targets out.

A `Controller` (`controller.py`) is given an `Observation` (`observation.py`) whenever it wants to
look, and returns a `ScalingDecision` (`decision.py`). Twin and live layer gather the one and carry
out the other; both are values that a log can keep; what was decided follows from them alone.
"""
