"""A report as one HTML file: nothing is loaded from elsewhere, no script runs, and it prints."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from openk2.evals.verify.check import Check
from openk2.evals.verify.report import Report

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --pass: #18794e; --fail: #c62a2f; --skip: #8a8a8a }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line) }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.passed, .failed, .skipped { font-weight: 600 }
.passed { color: var(--pass) } .failed { color: var(--fail) } .skipped { color: var(--skip) }
code { overflow-wrap: anywhere; font-size: .9em }
ul { margin: .2rem 0; padding-left: 1.2rem }
"""
_MOST_FAULTS = 20


def html_page(report: Report) -> str:
    """The whole page."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    title = f"{escape(report.model)} at {escape(report.place)}"
    verdict = "passed" if report.passed else "failed"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Verification of {title}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body>"
    yield f'<h1>Verification of {title}: <span class="{verdict}">{verdict}</span></h1>'
    asked = f"{report.summary['eval_started_at']} to {report.summary['eval_finished_at']}"
    yield f"<p>{escape(report.verdict)}. Request lines: {escape(asked)}.</p>"
    for group, checks in report.groups():
        yield f"<h2>{escape(group.capitalize())}</h2><table><tr><th>Check<th>Outcome<th>Answers<th>Faults</tr>"
        for check in checks:
            yield (
                f'<tr><td>{escape(check.name)}<td class="{check.outcome}">{check.outcome}'
                f'<td class="n">{check.asked}<td>{_faults(check)}</tr>'
            )
        yield "</table>"
    yield "<h2>Reported, not judged</h2><table><tr><th>Figure<th>Value<th>Answers<th>Meaning</tr>"
    for figure in report.figures:
        yield (
            f'<tr><td>{escape(figure.name)}<td class="n">{figure.shown}<td class="n">{figure.counted}'
            f"<td>{escape(figure.meaning)}</tr>"
        )
    yield "</table></body></html>"


def _faults(check: Check) -> str:
    if not check.faults:
        return escape(check.note)
    shown = "".join(f"<li><code>{escape(fault)}</code>" for fault in check.faults[:_MOST_FAULTS])
    more = len(check.faults) - _MOST_FAULTS
    return f"<ul>{shown}</ul>" + (f"and {more} more" if more > 0 else "")
