"""Where step times and memory come from: silicon tables, models, data sheets, profiles.

Reads files (and keeps what is slow to make in a cache folder), so that `dynosim.timing` need not:
what is read here becomes that package's tables, shapes and models.
"""

from dynosim.silicon.capacity import Capacity, capacity_of_running, resolve_num_gpu_blocks

__all__ = ["Capacity", "capacity_of_running", "resolve_num_gpu_blocks"]
