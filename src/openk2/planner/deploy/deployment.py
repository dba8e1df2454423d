"""What runs where: the processes of a deployment, before anybody writes them down as a script or a manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from openk2.planner.deploy.published import Published
from openk2.planner.plan import Plan

UPSTREAM_PORT = 8001
"""Where the deployment answers; `openk2 serve` in front takes 8000."""
PREFILL_PORT = 8002
DECODE_PORT = 8003
BOOTSTRAP_PORT = 8998
"""SGLang's default, on which prefill and decode meet."""
NIXL_PORT = 5600
"""Side channel of vLLM's NixlConnector; its default."""
MASTER_PORT = 29501
DATA_PARALLEL_PORT = 13345
SGLANG_INIT_PORT = 50000
RAY_PORT = 6379

LISTEN = "<listen>"
"""Address to listen on: this machine only, where nothing on another one asks."""
SELF = "<self>"
"""This process's own address."""
ADDRESS = re.compile(r"<([a-z]+(?:-\d+)?)>")


def address(process: str) -> str:
    """Stands in arguments for the address of the node that runs a process, until a writer knows it."""
    return f"<{process}>"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the plan does not say."""

    checkpoint: str
    served_name: str
    published: Published
    revision: str | None = None
    quantize_on_load: bool = False
    """The checkpoint is bfloat16 and the plan's format is made while loading."""
    uses_ray: bool = False


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of one node."""

    name: str
    """Such as engine-0, prefill-1, router."""
    program: str
    """Whose flags these are: vllm, sglang, vllm-router, sglang-router or ray."""
    argv: tuple[str, ...]
    """With addresses as `address`, LISTEN and SELF stand for them."""
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that must have ended before."""
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    """Where it answers /health; None for one that only works for another."""
    is_reached: bool = False
    """From other nodes, over HTTP."""
    num_devices: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the program's own parser reads."""
        start = {"vllm": 2, "sglang": 3, "sglang-router": 3, "vllm-router": 1, "ray": 1}[self.program]
        return self.argv[start:]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Processes whose nodes it must be told of, its own among them where it tells others."""
        texts = [*self.argv, *(word for command in self.before for word in command), *self.environment.values()]
        found = {name for text in texts for name in ADDRESS.findall(text)} - {"listen"}
        return tuple(sorted(self.name if name == "self" else name for name in found))


@dataclass(frozen=True, kw_only=True)
class Deployment:
    engine: str
    """vllm or sglang."""
    engine_version: str
    flags_version: str
    """Of the package whose flags are written; the newest known one that is not after `engine_version`."""
    served_name: str
    checkpoint: str
    """Repository or folder that the engine loads."""
    image: str
    is_nvidia: bool
    plans: Mapping[str, Plan]
    """Group of processes (engine, prefill, decode) -> what was planned for it."""
    processes: tuple[Process, ...]
    notes: tuple[str, ...] = ()
    port: int = UPSTREAM_PORT

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint is a folder of the nodes, by its absolute path, and not a repository."""
        return self.checkpoint.startswith("/")

    @property
    def entry(self) -> Process:
        """The process that answers clients."""
        return next(process for process in self.processes if process.port == self.port)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Processes whose nodes' addresses must be known somewhere."""
        return tuple(sorted({name for process in self.processes for name in process.addresses}))

    @property
    def weights_bytes(self) -> int:
        return next(iter(self.plans.values())).memory.weights_bytes

    @property
    def start_seconds(self) -> int:
        """After which one that does not answer has failed: the first start downloads the weights, here at 1 Gb/s."""
        return 1800 + self.weights_bytes // 125_000_000


def dns_name(text: str) -> str:
    """Of small letters, digits and hyphens, a letter first, at most 50 of them: a name for services and projects."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (name if name[:1].isalpha() else f"model-{name}")[:50].strip("-")


def filled(text: str, replace: Callable[[str], str]) -> str:
    """A text with each of its addresses, `listen` and `self` among them, replaced by what `replace` gives for it."""
    return ADDRESS.sub(lambda match: replace(match[1]), text)
