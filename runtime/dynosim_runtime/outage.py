"""What fails for a while and is tried again: told when it begins and when it is over, not between.

A full disk fails at every write; a log of all of them would help nobody, least of all the disk.
"""

import logging

from dynosim.errors import DynosimError


class Outage:
    """One kind of thing that may fail for a while; `what` names it, as in "the records".

    Errors of the system, of ours for users, and `foreseen` ones are the world's fault.
    """

    def __init__(
        self, log: logging.Logger, what: str, foreseen: tuple[type[Exception], ...] = ()
    ) -> None:
        self.num_failures = 0  # of the present outage
        self.num_total = 0
        self._log = log
        self._what = what
        self._foreseen: tuple[type[Exception], ...] = (OSError, DynosimError, *foreseen)

    def failed(self, error: Exception) -> None:
        """It failed once more. What nobody has foreseen is told with its trace."""
        self.num_failures += 1
        self.num_total += 1
        if self.num_failures == 1:
            trace = None if isinstance(error, self._foreseen) else error
            text = str(error) or type(error).__name__
            self._log.error("%s: %s; tried again later", self._what, text, exc_info=trace)

    def worked(self) -> None:
        """It worked."""
        if self.num_failures:
            self._log.warning("%s: works again, after %d failures", self._what, self.num_failures)
            self.num_failures = 0
