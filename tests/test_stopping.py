"""Signals: the first is acknowledged at once and obeyed at the next batch, a second ends the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldae import stopping


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_the_first_signal_is_acknowledged_and_obeyed_at_the_next_batch(number, capfd):
    before = signal.getsignal(number)
    with pytest.raises(stopping.Stopped) as stopped, stopping.handling("ldae knn"):
        stopping.check()
        send(number)
        assert stopping.received() == number
        stopping.check()
    assert stopped.value.code == 128 + number
    name = signal.Signals(number).name
    assert capfd.readouterr().err == (
        f"ldae knn: received {name}, stopping after this batch; a second signal stops at once.\n"
    )
    assert signal.getsignal(number) is before and stopping.received() is None
    stopping.check()


def test_work_without_batches_stops_wherever_it_is():
    with pytest.raises(stopping.Stopped), stopping.handling("ldae export", at_once=True):
        send()
        time.sleep(10)


def test_work_that_must_end_is_not_stopped_within():
    with pytest.raises(stopping.Stopped), stopping.handling("outer"), stopping.handling("inner"):
        send()
        with stopping.deferred():
            stopping.check()
        stopping.check()


def test_a_forked_child_keeps_its_signals_to_itself(capfd):
    with stopping.handling("ldae knn"):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        time.sleep(0.2)
        assert stopping.received() is None
    assert os.WIFSIGNALED(status) and capfd.readouterr().err == ""


BUSY = """
import hashlib, sys
from ldae import stopping
with stopping.handling("ldae finetune"):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # one call that takes minutes, without the GIL
"""


@pytest.mark.parametrize(
    "number",
    [
        number if number == signal.SIGTERM else pytest.param(number, marks=pytest.mark.slow)
        for number in stopping.SIGNALS
    ],
)
def test_one_long_call_is_acknowledged_at_once_and_ended_by_the_second_signal(number):
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    environment["PYTHONPATH"] = str(Path(stopping.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(number)
        assert process.stderr.readline().startswith(f"ldae finetune: received {signal.Signals(number).name}, stopping")
        process.send_signal(number)  # a launcher's copy of the same signal
        time.sleep(2 * stopping.SAME_SECONDS)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=5) == 128 + number
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
