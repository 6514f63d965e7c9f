"""Start a function in several processes that find each other, as `accelerate launch` would, and much faster."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

import torch

from ukbmm.core import UkbmmError
from ukbmm.training.distributed import Processes, join


def environment(rank: int, world: int, port: int, sharded: bool = False) -> dict[str, str]:
    "What `accelerate launch` puts into the environment of a process."
    found = {"WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
             "ACCELERATE_USE_FSDP": str(sharded).lower()}  # fmt: skip
    return {name: str(value) for name, value in found.items()}


def forked(work: Callable[[], int | None]) -> int:
    "Start a function in a forked process; returns the process, which exits with what the function returns."
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = work() or 0
        except BaseException as error:
            status = getattr(error, "exit_code", 1)
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    return process


def status_of(process: int) -> int:
    "Wait for a process; returns its exit status, negative for a signal."
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def in_a_process(work: Callable[[], int | None]) -> int:
    "Do something in a forked process; returns its exit status, negative for a signal."
    return status_of(forked(work))


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
    work_of = [partial(_run, work, environment(rank, world, port, sharded)) for rank in range(world)]
    return [status_of(process) for process in [forked(one) for one in work_of]]
