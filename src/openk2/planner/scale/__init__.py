"""A service for many users, on paper: how many deployments, what they cost, and a simulation of their front."""

from openk2.planner.scale.front import Fleet, Outcome, Service, Workload, simulate
from openk2.planner.scale.service import Audience, ServicePlan, plan_service

__all__ = [
    "Audience",
    "Fleet",
    "Outcome",
    "Service",
    "ServicePlan",
    "Workload",
    "plan_service",
    "simulate",
]
