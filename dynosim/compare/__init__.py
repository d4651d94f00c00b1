"""Predicted against measured: intervals, attribution of errors, rankings, published cases."""
