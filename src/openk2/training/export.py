"""A trained model as a checkpoint folder in the published layout, or its adapters in PEFT's."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from openk2.checkpoint import save_model
from openk2.errors import TrainingError
from openk2.training.adapter_files import save_adapter
from openk2.training.trainer import Trainer


def export_model(trainer: Trainer, folder: Path) -> None:
    """Write weights (bfloat16), configuration, greedy generation defaults, and the run's tokenizer; of a run of
    adapters those alone, as PEFT reads them. Raises TrainingError when they cannot be written."""
    config, lora = trainer.recipe.model, trainer.recipe.lora
    if lora is not None:
        save_adapter(trainer.model, lora, trainer.recipe.init, folder)
        return
    generation = {
        "do_sample": False,
        "eos_token_id": list(config.eos_token_ids),
        "max_length": config.max_position_embeddings,
    }
    try:
        save_model(trainer.model, folder, dtype=torch.bfloat16, generation_config=generation)
        for file in sorted((trainer.folder / "tokenizer").iterdir()):
            shutil.copy(file, folder / file.name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"cannot write the model to {folder}: {reason}; the run's state is intact") from None
