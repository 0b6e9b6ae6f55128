"""accel_train: a distributed multi-GPU trainer on Accelerate, with layer-wise learning-rate decay."""

__version__ = "0.1.0"
