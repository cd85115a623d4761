"""Errors that a user can mend, and their message in one line."""

import errno
import re


LONGEST = 600  # characters of a message
# Packages of the clients of object stores and the network, whose errors have no common base class.
CLIENTS = frozenset("botocore aiobotocore s3fs gcsfs google adlfs azure aiohttp httpx requests urllib3".split())


class RunError(RuntimeError):
    """Error for a training run that has to stop, such as a non-finite loss, a full disk or another recipe's folder.

    The message says what happened, what was kept and what to do; the command line prints it without a traceback.
    """


def one_line(error: BaseException | str) -> str:
    r"""Return a message in one line, without passwords and signatures, cut after `LONGEST` characters.

    Example:
        >>> one_line("first\n  second")
        'first second'
    """
    text = hide_secrets(" ".join(str(error).split()))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def hide_secrets(text: str) -> str:
    """Replace passwords and signatures of the addresses in a text.

    Example:
        >>> hide_secrets("https://me:secret@host/a.parquet?X-Amz-Signature=123")
        'https://...@host/a.parquet?...'
    """
    text = re.sub(r"(?<=://)[^/\s'\"]+@", "...@", text)  # up to the last @, which a password may hold too
    text = re.sub(r"(https?://[^\s?'\"]*\?)(?!\.\.\.)[^\s'\"]+", r"\1...", text)
    return re.sub(r"(\w://[^\s?'\"]*\?)[^\s?'\"]*=[^\s'\"]*", r"\1...", text)  # a pattern has ? without =


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
    if type(error).__module__.partition(".")[0] in CLIENTS:
        kind = type(error).__name__
        return (
            f"the network or the store failed ({kind}: {one_line(str(error).rstrip('.'))[:300]}); repeat the command."
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_memory(str(error))):
        return f"out of memory ({one_line(error)[:200]}); give a smaller model, batch or image."
    return None


def _is_memory(text: str) -> bool:
    return "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
