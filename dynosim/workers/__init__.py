"""What twin and live layer both know of a worker: the phases of its life."""
