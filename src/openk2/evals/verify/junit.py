"""A report as JUnit XML, which continuous integration shows check by check."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, tostring

from openk2.evals.verify.report import Report

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped; answers may."""


def junit_xml(report: Report) -> str:
    """One test suite for each group, one test case for each check."""
    root = Element("testsuites", name=f"openk2 verify {report.place}")
    for group, checks in report.groups():
        failures = sum(check.outcome == "failed" for check in checks)
        skipped = sum(check.outcome == "skipped" for check in checks)
        attributes = {"name": _clean(group), "tests": str(len(checks)), "errors": "0"}
        suite = SubElement(root, "testsuite", {**attributes, "failures": str(failures), "skipped": str(skipped)})
        for check in checks:
            case = SubElement(suite, "testcase", classname=f"verify.{_clean(group)}", name=_clean(check.name))
            if check.outcome == "failed":
                SubElement(case, "failure", message=_clean(check.faults[0])).text = _clean("\n".join(check.faults))
            elif check.outcome == "skipped":
                SubElement(case, "skipped", message=_clean(check.note))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
