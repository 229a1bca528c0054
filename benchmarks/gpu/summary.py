"""The summary, short enough for the end of a log, and whether the kernels are correct."""

from pathlib import Path

from benchmarks.gpu import environment, record, tables, tests
from benchmarks.gpu.tables import Line, of

GATES = ("smoke", "tests")
REHEARSAL = "A REHEARSAL ON A CPU: nothing here is a measurement of a GPU"


def status(out: Path, wanted: tuple[str, ...]) -> int:
    """1 if smoke or tests were selected and something in them failed, or nothing passed."""
    lines = record.read(out / record.LINES)
    for phase in GATES:
        if phase in wanted:
            ends = [line.get("ok") for line in of(lines, phase)]
            if False in ends or True not in ends:
                return 1
    return 0


def text(
    lines: list[Line],
    out: Path,
    sanitizer: list[str],
    *,
    phases: tuple[str, ...],
    dry: bool,
    budget_s: float,
) -> str:
    parts = [REHEARSAL] if dry else []
    parts += [_machine(lines), tables.phases(lines, phases).text()]
    for word, ok in (("FAILED", False), ("NOT RUN", None)):
        found = tables.problems(lines, ok)
        if found:
            parts.append("\n".join([f"{word}:", *(f"  {text}" for text in found)]))
    if tables.smoke(lines).rows:
        parts.append("smoke\n" + tables.smoke(lines).text())
    report = tests.report(out)
    if report is not None:
        parts.append(test_lines(report))
    if sanitizer:
        parts.append("\n".join(["sanitize", *sanitizer]))
    ceilings = ceiling_line(lines)
    for name in ("bench", "sweep", "profile"):
        table = getattr(tables, name)(lines)
        if table.rows:
            more = f"\n{ceilings}" if name == "bench" and ceilings else ""
            parts.append(f"{name}\n{table.text()}{more}")
    for series in tables.training(lines):
        parts.append(f"train, {series.title}\n{series.table.text()}")
    return "\n\n".join(parts)


def _machine(lines: list[Line]) -> str:
    found = next(iter(of(lines, "machine")), None)
    if found is None or "card" not in found:
        return "machine: unknown, because its process failed (see log.txt)"
    first = ", ".join(f"{key} {found[key] or '-'}" for key in environment.NAMED)
    hidden = {*environment.NAMED, "phase", "name", "ok", "at", "slug"}
    rest = ", ".join(f"{key} {value}" for key, value in found.items() if key not in hidden)
    return f"{first}\n{rest}"


def test_lines(report: tests.Report) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in report.counts.items()) or "none ran"
    lines = [f"tests: {counts}"]
    if not report.whole:
        lines.append("pytest did not write its report; counts are from tests.log")
    lines += [f"  {text}" for text in report.bad[:30]]
    if len(report.bad) > 30:
        lines.append(f"  and {len(report.bad) - 30} more in tests.xml")
    lines += [f"  skipped {count}: {why}" for why, count in report.skipped.most_common(5)]
    if report.slowest:
        lines.append(f"  slowest: {', '.join(report.slowest)}")
    return "\n".join(lines)


def ceiling_line(lines: list[Line]) -> str:
    for line in of(lines, "bench"):
        if "tflops" in line:
            return (
                f"this card: {line['tflops']} TFLOP/s of bf16 products, {line['tb_s']} TB/s copied"
            )
    return ""
