"""The architecture: latent attention, mixture of experts, YaRN."""

from openk2.models.forward_batch import ForwardBatch, PagedBatch
from openk2.models.k2 import K2Model, num_active_parameters, num_parameters

__all__ = ["ForwardBatch", "K2Model", "PagedBatch", "num_active_parameters", "num_parameters"]
