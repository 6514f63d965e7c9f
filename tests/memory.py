"""How much memory a program takes, in a process of its own."""

import subprocess
import sys

PEAK = """
with open("/proc/self/status") as status:
    print("peak", next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def peak_mib(
    program: str,  # Python source
    *arguments: object,  # Its `sys.argv[1:]`
) -> float:  # MiB
    "Peak memory of a program; `ru_maxrss` won't do, since a child starts with its parent's."
    command = [sys.executable, "-c", program + PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024
