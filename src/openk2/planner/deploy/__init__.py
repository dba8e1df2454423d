"""A plan as something that runs: vLLM's and SGLang's command lines, as a script, a compose file or manifests."""

from openk2.planner.deploy.deployment import Deployment, Process, Settings
from openk2.planner.deploy.flags import ProgramFlags, known_versions, program_flags
from openk2.planner.deploy.make_deployment import make_deployment, plan_for_engine, read_layout, read_split

__all__ = [
    "Deployment",
    "Process",
    "ProgramFlags",
    "Settings",
    "known_versions",
    "make_deployment",
    "plan_for_engine",
    "program_flags",
    "read_layout",
    "read_split",
]
