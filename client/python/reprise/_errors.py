"""Exceptions of the reprise package, one class per code that a caller reacts to differently."""

CODE_OK = 0


class RepriseError(Exception):
    """Any failure of Reprise. `code` is the number of reprise/status.h."""

    code = 13

    def __init__(self, message, code=None):
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidArgument(RepriseError, ValueError):
    code = 3


class DeadlineExceeded(RepriseError, TimeoutError):
    code = 4


class NotFound(RepriseError, LookupError):
    code = 5


class AlreadyExists(RepriseError):
    """The step is committed already, or the job is alive under another launcher."""

    code = 6


class ResourceExhausted(RepriseError):
    """Disk, slab or quota is full."""

    code = 8


class FailedPrecondition(RepriseError):
    code = 9


class SaveAborted(RepriseError):
    """The save failed for all ranks; a later step may try again."""

    code = 10


class Unavailable(RepriseError, ConnectionError):
    code = 14


class DataLoss(RepriseError):
    """Stored bytes fail their digest and no intact copy is left."""

    code = 15


class Fenced(RepriseError):
    """A newer run of this job exists; this process must stop saving."""

    code = 18


_CLASSES = {cls.code: cls for cls in (InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists,
                                      ResourceExhausted, FailedPrecondition, SaveAborted,
                                      Unavailable, DataLoss, Fenced)}


def error_for(code, message):
    """The exception for a failed call."""
    return _CLASSES.get(code, RepriseError)(message or f"code {code}", code)
