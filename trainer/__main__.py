"""`python -m trainer`, or `torchrun --nproc-per-node N -m trainer`: trains without Ray.

Ranks come from torchrun's environment; gloo connects CPUs, NCCL connects GPUs, one a process.
"""

import logging
import os
import sys

import torch
from torch import distributed as dist

from schemas.errors import PixeleseError
from trainer.run import describe, parse_options, run_training


def main() -> int:
    """Runs the command line; 0 when trained, or stopped by SIGTERM with a checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    options = parse_options()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    has_gpu = torch.cuda.is_available()
    if has_gpu and local_rank >= torch.cuda.device_count():
        print(
            f"error: rank {local_rank} of this machine has no GPU: it has "
            f"{torch.cuda.device_count()}. Start as many ranks, or hide the GPUs with "
            "CUDA_VISIBLE_DEVICES= to train on the CPU",
            file=sys.stderr,
        )
        return 1
    if has_gpu:
        torch.cuda.set_device(local_rank)
    if world_size > 1:
        dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        result = run_training(
            options,
            rank=rank,
            world_size=world_size,
            progress=lambda line: print(describe(line), flush=True),
        )
    except PixeleseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if world_size > 1:
            dist.destroy_process_group()
    if rank == 0:
        done = "stopped" if result["stopped"] else "finished"
        print(f"{done} step={result['optimizer_step']} checkpoint={result['checkpoint']}")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All work is done and written. A thread of gloo that lets go of a tensor while Python shuts
    # down aborts the process, which was seen once in some hundred short runs under load.
    os._exit(status)
