"""Sizes of DeepSpeed's buffers, in numbers (4 bytes each). Its own defaults take gigabytes whatever the model's size is."""

REDUCE_BUCKET = 50_000_000
"""`reduce_bucket_size`: gradients on their way to other ranks; allocated in full, twice under ZeRO-3."""
ZERO3_LIVE = 100_000_000
"""`stage3_max_live_parameters` and `stage3_max_reuse_distance`: weights that ZeRO-3 may keep gathered."""
