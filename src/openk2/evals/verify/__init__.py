"""Is a deployment of the model faithful? Compatible with the vendor's verifier, for any OpenAI-compatible endpoint."""

from openk2.evals.verify.check import Check, Figure
from openk2.evals.verify.generator import generate_lines
from openk2.evals.verify.junit import junit_xml
from openk2.evals.verify.page import html_page
from openk2.evals.verify.records import Record, RecordLog, read_records
from openk2.evals.verify.report import Report
from openk2.evals.verify.requests import Overrides, read_lines, write_lines
from openk2.evals.verify.schema_checks import SchemaCase, cases_in, generated_cases
from openk2.evals.verify.verify import Plan, verify

__all__ = [
    "Check",
    "Figure",
    "Overrides",
    "Plan",
    "Record",
    "RecordLog",
    "Report",
    "SchemaCase",
    "cases_in",
    "generate_lines",
    "generated_cases",
    "html_page",
    "junit_xml",
    "read_lines",
    "read_records",
    "verify",
    "write_lines",
]
