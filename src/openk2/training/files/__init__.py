"""Training data from files: texts to pretrain on, conversations to fine-tune on.

`collect_texts` and `collect_conversations` find and check every document; `Order` shuffles them.
"""

from __future__ import annotations

from openk2.training.files.collect import collect_conversations, collect_texts, expand_paths
from openk2.training.files.documents import Collection, Document
from openk2.training.files.order import Order, split

__all__ = ["Collection", "Document", "Order", "collect_conversations", "collect_texts", "expand_paths", "split"]
