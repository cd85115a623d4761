"""The error of a run that cannot continue."""


class RunError(RuntimeError):
    """Error for a training run that has to stop, such as a non-finite loss, a full disk or another recipe's folder.

    The message says what happened, what was kept and what to do; the command line prints it without a traceback.
    """
