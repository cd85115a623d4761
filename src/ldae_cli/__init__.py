"""The `ldae` command's entry point, beside the package so that it starts in a fraction of a second.

`import ldae` imports torch and transformers and registers the models with the Auto classes, which takes seconds. Help
and wrong arguments need none of that: here the package is entered into `sys.modules` without running its `__init__`,
and [`ldae.cli.finish_import`] runs that before a verb starts.
"""

import os
import signal
import sys
from importlib.util import find_spec, module_from_spec


# Between two parallel regions the threads of GNU OpenMP spin. On cores that others use too they then wait for one that
# is not running, which made training beside other work up to 27 times slower; so they sleep after 10,000 turns instead
# of 300,000. (With 1,000, training alone is a quarter slower.) This is read when torch is imported, which is later.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"


def main(arguments: list[str] | None = None) -> int:
    """Run the `ldae` command; see [`ldae.cli.main`]."""
    try:
        if "ldae" not in sys.modules:
            spec = find_spec("ldae")
            assert spec is not None
            sys.modules["ldae"] = module_from_spec(spec)
        from ldae.cli import main as run

        status = run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which the interpreter flushes at its end
        return 128 + signal.SIGPIPE
