"""Runs one service so that it can never outlive the process that started it.

Called as `python -m services.standalone.child <parent's pid> <module>`. The kernel kills this
process when its parent dies, however that happens; the parent's pid closes the gap before the
request to the kernel. A service is safe against kill -9, so no gentler way is needed here.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent ends; exits at once if it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Becomes the service."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
