"""Everything that can go wrong, on one page.

RaywatchError
├── ConfigError     a file, a flag or a right must change              exit 2
├── ArtifactError   a model artifact is missing, torn or foreign       exit 2
├── Unreachable     a broker, node or actor did not answer in time     exit 3
├── Refused         the question was understood, the answer is no      exit 1
├── Fenced          another owner holds this lane now                  stops the lane, no exit
└── LaneLost        the outcome of a write is unknown, or it was undone: open the lane anew

An error says what happened (message) and what to do (hint). A traceback is never the answer to an
operator: tracebacks are for bugs, and a bug is an AssertionError (exit 70).

Constructors take the message plus defaulted keywords: Ray cannot carry an exception with a
required keyword over a process boundary, and the hint would be lost.
"""

EXIT_OK = 0
EXIT_NO = 1
EXIT_CHANGE = 2
EXIT_UNREACHABLE = 3
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class RaywatchError(Exception):
    """An outcome that an operator can act on."""

    exit_code = EXIT_BUG

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[RaywatchError], message: str, hint: str) -> RaywatchError:
    return kind(message, hint=hint)


class ConfigError(RaywatchError):
    """A file, a flag or a right must change."""

    exit_code = EXIT_CHANGE


class ArtifactError(RaywatchError):
    """A model artifact is missing, torn or foreign."""

    exit_code = EXIT_CHANGE


class Unreachable(RaywatchError):
    """A broker, node or actor did not answer in time."""

    exit_code = EXIT_UNREACHABLE


class Refused(RaywatchError):
    """The question was understood, the answer is no."""

    exit_code = EXIT_NO


class Fenced(RaywatchError):
    """Another owner holds this lane now."""


class LaneLost(RaywatchError):
    """A write was undone or its outcome is unknown: the lane must be opened anew."""
