"""Evaluations: cases run against any ChatProvider, scored, with intervals. Light: no torch, no model."""

from openk2.evals.cases import Case, CaseKind, ExpectedCall, case_from_reference, written_cases
from openk2.evals.figures import FIGURES, Figure, Share
from openk2.evals.generated import HeldCases, generated_cases
from openk2.evals.records import Record, RecordFile
from openk2.evals.report import Report
from openk2.evals.runner import evaluate, evaluate_async
from openk2.evals.scoring import Score, score_reply

__all__ = [
    "FIGURES",
    "Case",
    "CaseKind",
    "ExpectedCall",
    "Figure",
    "HeldCases",
    "Record",
    "RecordFile",
    "Report",
    "Score",
    "Share",
    "case_from_reference",
    "evaluate",
    "evaluate_async",
    "generated_cases",
    "score_reply",
    "written_cases",
]
