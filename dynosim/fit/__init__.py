"""Constants from data: request logs, a prior, a fit by simulation, scores."""
