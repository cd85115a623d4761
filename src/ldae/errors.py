"""The error of a run that cannot go on."""


class RunError(RuntimeError):
    """A training run has to stop: a non-finite loss, a full disk, a folder that belongs to another recipe. The message
    says what happened, what was kept and what to do; the command line prints it without a traceback.
    """
