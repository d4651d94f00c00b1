"""Predictions held against everything recorded that one has: files in, an accuracy matrix out."""
