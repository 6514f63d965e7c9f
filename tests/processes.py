"""Start a function in several processes that find each other, as `accelerate launch` would, and much faster."""

import os
import signal
import socket
import sys
from collections.abc import Callable

import torch

from ukbmm.core import UkbmmError
from ukbmm.training.distributed import Processes, join


def environment(rank: int, world: int, port: int, sharded: bool = False) -> dict[str, str]:
    "What `accelerate launch` puts into the environment of a process."
    found = {"WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
             "ACCELERATE_USE_FSDP": str(sharded).lower()}  # fmt: skip
    return {name: str(value) for name, value in found.items()}


def _run(work: Callable[[Processes], None], variables: dict[str, str]) -> int:
    "Do the work of one process; returns its exit status."
    os.environ |= variables
    signal.alarm(300)  # a process that hangs is killed
    try:
        work(join())
        torch.distributed.destroy_process_group()
    except UkbmmError as error:
        print(error, file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 2)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def together(
    work: Callable[[Processes], None],  # Given this process among the others
    world: int = 2,
    sharded: bool = False,  # Do they share one network?
) -> list[int]:  # Exit statuses, negative for a signal
    "Do something in several forked processes."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _run(work, environment(rank, world, port, sharded))
            finally:
                sys.stderr.flush()
                os._exit(status)
        started.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
