"""Work that the processes of a launch share: what each gets, and how all end where one fails."""

import json

from ldae.shared_work import failing_together, gather_objects, is_main, led_by_main, on_main, share, sharing_work
from tests.processes import run_on


SCRIPT = """
import json, sys
from ldae.shared_work import failing_together, gather_objects, is_main, led_by_main, on_main, share, sharing_work

def fail(*_):
    raise ValueError("wrong")

def fail_in_second(argument):
    with failing_together():
        return argument if is_main() else fail()

def step(argument):
    return sum(gather_objects(argument))

def attempt(work):
    try:
        return work()
    except ValueError as error:
        return str(error)
    except SystemExit as stop:
        return stop.code

with sharing_work():
    said = {
        "share": share(),
        "gathered": gather_objects(share()[0]),
        "on_main": on_main(lambda: "done"),
        "led": led_by_main(lambda call: [call(n) for n in (1, 2, 3)], step),
        "main fails": attempt(lambda: on_main(fail)),
        "second fails": attempt(lambda: fail_in_second(0)),
        "leader fails": attempt(lambda: led_by_main(fail, step)),
        "step fails": attempt(lambda: led_by_main(lambda call: call(1), fail_in_second)),
        "still in step": gather_objects(share()[0]),
    }
    print("only the main process speaks")
print(json.dumps(said))
"""


def test_two_processes_agree_also_where_one_fails(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    first, second = run_on(2, tmp_path / "script.py", folder=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "only the main process speaks" in first.stdout and "only" not in second.stdout
    ours, theirs = (json.loads(process.stdout.splitlines()[-1]) for process in (first, second))
    assert ours == {
        "share": [0, 2],
        "gathered": [0, 1],
        "on_main": "done",
        "led": [2, 4, 6],
        "main fails": "wrong",
        "second fails": 2,
        "leader fails": "wrong",
        "step fails": 2,
        "still in step": [0, 1],
    }
    # An error is told by the process that has it, and ends the other quietly.
    failed = {"main fails": 2, "second fails": "wrong", "leader fails": 2, "step fails": "wrong"}
    assert theirs == ours | {"share": [1, 2], "on_main": None, "led": None} | failed


def test_a_process_of_its_own_shares_with_nobody():
    with sharing_work():
        assert share() == (0, 1) and is_main() and gather_objects(3) == [3]
        assert on_main(lambda: 4) == 4 and led_by_main(lambda call: call(5), lambda n: n + 1) == 6
        with failing_together():
            pass
