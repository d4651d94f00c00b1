"""Predictions held against measurements: calibration from request logs, scores, cases, ranking."""
