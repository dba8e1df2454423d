"""Checkpoint folders in the published layout: safetensors under the published names, beside their configs."""

from openk2.checkpoint.files import Checkpoint, load_config, load_generation_config
from openk2.checkpoint.load import check_tensors, load_model
from openk2.checkpoint.random_weights import random_model
from openk2.checkpoint.save import save_model
from openk2.models.packed import Quantization

__all__ = [
    "Checkpoint",
    "Quantization",
    "check_tensors",
    "load_config",
    "load_generation_config",
    "load_model",
    "random_model",
    "save_model",
]
