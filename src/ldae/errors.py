"""Errors that a user can mend, and their message in one line."""

import errno


LONGEST = 600  # characters of a message


class RunError(RuntimeError):
    """Error for a training run that has to stop, such as a non-finite loss, a full disk or another recipe's folder.

    The message says what happened, what was kept and what to do; the command line prints it without a traceback.
    """


def one_line(error: BaseException | str) -> str:
    r"""Return a message in one line, cut after `LONGEST` characters.

    Example:
        >>> one_line("first\n  second")
        'first second'
    """
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def explain(error: BaseException) -> str | None:
    """Explain an error that the user can mend in one line: a wrong value, a file, a full disk, too little memory.

    Args:
        error: What was raised.

    Returns:
        The line; `None` for an error of the program itself.
    """
    if isinstance(error, ValueError | RunError):
        return one_line(error)
    if isinstance(error, OSError):
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or one_line(error)
        remedies = {
            errno.ENOSPC: "make room and repeat the command",
            errno.EROFS: "name a folder that can be written to",
            errno.EACCES: "name a file or folder that you may use",
        }
        remedy = remedies.get(error.errno or 0, "name another file or folder, or repair this one")
        return f"{reason.rstrip('.')}; {remedy}."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_memory(str(error))):
        return f"out of memory ({one_line(error)[:200]}); give a smaller model, batch or image."
    return None


def _is_memory(text: str) -> bool:
    return "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
