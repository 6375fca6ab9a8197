"""Goal: a process whose work hangs ends itself, and one that works or was stopped does not.

Method: the watchdog beside real threads, and in a process of its own that hangs in a read that
never ends, as a store that does not answer makes it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from raywatch.cluster.watchdog import Watchdog

HANGS = """
import sys
from raywatch.cluster.watchdog import Watchdog
Watchdog(1.0, "the reader", look_s=0.1).start()
print("reads", flush=True)
open(sys.argv[1]).read()
"""

STOPS = """
import time
from raywatch.cluster.watchdog import Watchdog
dog = Watchdog(1.0, "the sleeper", look_s=0.1)
dog.start()
print("works", flush=True)
for _ in range(40):
    dog.feed()
    time.sleep(0.05)
dog.close()
print("done", flush=True)
"""


def test_who_hangs_in_a_read_is_ended_and_says_so(tmp_path: Path) -> None:
    never = tmp_path / "never"
    os.mkfifo(never)
    words = [sys.executable, "-c", HANGS, str(never)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == "reads\n"
    assert done.stderr == "the reader did nothing for 1 s: the process ends\n"


def test_a_process_that_was_stopped_for_longer_goes_on() -> None:
    words = [sys.executable, "-c", STOPS]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    process.send_signal(signal.SIGCONT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "done\n", "")


def test_who_feeds_it_lives_and_who_closes_it_is_left_alone() -> None:
    ended, said = threading.Event(), list[str]()

    def die(words: str) -> None:
        said.append(words)
        ended.set()

    dog = Watchdog(1.0, "the work", die=die, look_s=0.01)
    dog.start()
    for _ in range(30):
        dog.feed()
        time.sleep(0.05)
    assert not said
    assert ended.wait(10.0)
    closed = Watchdog(0.05, "nobody", die=die, look_s=0.01)
    closed.start()
    closed.close()
    time.sleep(0.2)
    assert said == ["the work did nothing for 1 s: the process ends"]
