"""TensorFlow, configured only for reading data. Importing this module takes seconds.

from mae_jax.runtime.tensorflow_cpu import tf    # inside the function that needs it
"""

import os

# Silences TensorFlow's startup messages, not its warnings. Nothing here uses oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

# JAX owns the accelerators; TensorFlow would otherwise claim all of a GPU's memory.
tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
