"""Three numbers that are easily taken for each other.

A worker keeps its id for ever and no other gets it; ids grow as workers come and go. A slot is a
router's small number for a place where requests can run: it is given again once it is free, and
serves as a bit position. A data-parallel rank counts the places inside one worker.
"""

from typing import NewType

WorkerId = NewType("WorkerId", int)
Slot = NewType("Slot", int)
DpRank = NewType("DpRank", int)

FIRST_RANK = DpRank(0)
