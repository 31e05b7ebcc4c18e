"""A service for tests of the supervisor, which behaves as its environment says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def main() -> None:
    print("started", os.getpid(), flush=True)
    behaviour = os.environ["BEHAVIOUR"]
    if behaviour == "die":
        sys.exit(3)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if behaviour == "orphan":
        # A grandchild in a session of its own, which nothing but its adopter will end.
        child = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL)
        print("grandchild", child.pid, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
