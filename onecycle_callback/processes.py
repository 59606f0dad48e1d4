"""What the processes of a training run know about each other: rank, gather, broadcast"""

import torch.distributed

def world_size() -> int: # 1 if this process trains alone
    "Return the number of processes that train together."
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1

def rank() -> int: # 0 if this process trains alone
    "Return the rank of this process."
    return torch.distributed.get_rank() if world_size() > 1 else 0

def gather(
    value # Anything that can be pickled
) -> list|None: # One value per rank
    "Return the `value` of every rank as a list on rank 0, `None` on the other ranks."
    if world_size() == 1: return [value]
    contents:list|None = [None] * world_size() if rank() == 0 else None
    torch.distributed.gather_object(value, contents)
    return contents

def from_rank_0(
    function # Takes no arguments
):
    "Call `function` on rank 0, and return what it returns, or raise what it raises, on every rank."
    box:list = [None, None]
    if rank() == 0:
        try: box[0] = function()
        except Exception as e: box[1] = e
    if world_size() > 1: torch.distributed.broadcast_object_list(box)
    if box[1] is not None: raise box[1]
    return box[0]
