"""By which quantities of a step a range of measured steps is told."""

AXES = ("prefill_tokens", "prefix_tokens", "num_decodes", "mean_context")
