"""One model trained by several processes on torch's own engine: FSDP2, and experts spread over ranks.

Every rank holds a share of each layer (`shard`), sees its own batches, sends tokens to the ranks that hold their
experts (`experts`) and orthogonalises its share of the matrices (`owners`). In one process none of that is imported.
"""

from openk2.training.parallel.ranks import ALONE, Ranks, clip_grad_norm_, joined, local, my_rows

__all__ = ["ALONE", "Ranks", "clip_grad_norm_", "joined", "local", "my_rows"]
