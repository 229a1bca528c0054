"""The pages that a call leaves in benchmarks/results/<device>/: results of the first run, and the
training step. A section is replaced when its phase runs again; the others stay.
"""

import json
import re
import time
from pathlib import Path

from benchmarks.gpu import environment, summary, tables, tests
from benchmarks.gpu.tables import Line, of

FIRST = ("smoke", "tests", "sanitize", "bench", "sweep", "profile")
TITLES = {
    "versions": "Machine and versions",
    "smoke": "Smoke",
    "tests": "Tests",
    "sanitize": "Sanitizer",
    "bench": "Times",
    "sweep": "Other tiles",
    "profile": "What limits the kernels",
}
NOTES = {
    "smoke": "Small shapes compared with float64, a second call and a CUDA graph's replay.",
    "bench": "GPU time of CUDA-graph replays over inputs larger than the L2 cache (`graph`) or of "
    "calls (`events`). The prediction of `python -m benchmarks.cost` is for forward and backward. "
    "The CSV files beside this page have all figures, with peers and floors.",
    "sweep": "Timed in turns with the shipped tiles; a ratio below 1 is faster. See `sweep.csv`.",
    "profile": "Nsight Compute, one launch of each kernel.",
}


def write(
    lines: list[Line], out: Path, folder: Path, phases: tuple[str, ...], sanitizer: list[str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    where = _where(lines)
    sections = _sections(lines, out, phases, sanitizer)
    if sections:
        machine = next(iter(of(lines, "machine")), {})
        hidden = {"phase", "name", "ok", "at", "slug"}
        pairs = [(str(k), str(v)) for k, v in machine.items() if k not in hidden]
        sections = {"versions": tables.Table(("what", "value"), pairs).markdown()} | sections
        path = folder / "first_contact.md"
        kept = _kept(path) | {name: f"{where}\n\n{body}" for name, body in sections.items()}
        body = [f"## {TITLES[name]}\n\n{kept[name]}" for name in TITLES if name in kept]
        title = f"# First contact: {machine.get('card', 'unknown')}\n\n{_rehearsal(lines)}"
        intro = "Written by `make gpu`. The first line of a section names the call that wrote it."
        path.write_text("\n\n".join([title + intro, *body]) + "\n")
    if tables.training(lines):
        _training(lines, folder, where)


def _where(lines: list[Line]) -> str:
    """Environment that every page names."""
    machine = next(iter(of(lines, "machine")), {})
    named = ", ".join(f"{key} {machine.get(key) or '-'}" for key in environment.NAMED)
    return f"{named}, {time.strftime('%Y-%m-%d', time.gmtime())}"


def _rehearsal(lines: list[Line]) -> str:
    rehearsed = str(next(iter(of(lines, "machine")), {}).get("card", "")).startswith("CPU")
    return f"**{summary.REHEARSAL}.**\n\n" if rehearsed else ""


def _sections(
    lines: list[Line], out: Path, phases: tuple[str, ...], sanitizer: list[str]
) -> dict[str, str]:
    found = {}
    for phase in FIRST:
        if phase not in phases:
            continue
        parts = [NOTES[phase]] if phase in NOTES else []
        if phase == "tests":
            report = tests.report(out)
            parts.append(_test_report(report) if report else "pytest did not run.")
        elif phase == "sanitize":
            parts += [f"- {text}" for text in sanitizer]
        else:
            table = getattr(tables, phase)(lines)
            parts.append(table.markdown() if table.rows else "No results.")
            if phase == "bench" and summary.ceiling_line(lines):
                parts.append(summary.ceiling_line(lines).capitalize() + ".")
        mine = of(lines, phase)
        for word, ok in (("Failed", False), ("Not run", None)):
            bad = tables.problems(mine, ok)
            if bad:
                parts.append("\n".join([f"{word}:", "", *(f"- {text}" for text in bad)]))
        found[phase] = "\n\n".join(parts) or "No findings were written."
    return found


def _test_report(report: tests.Report) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in report.counts.items()) or "none ran"
    lines = [f"{counts}." if report.whole else f"{counts}, when pytest was stopped."]
    lines += ["", *(f"- {text}" for text in report.bad[:30])] if report.bad else []
    if report.skipped:
        lines += ["", *(f"- skipped {n}: {why}" for why, n in report.skipped.most_common(8))]
    return "\n".join(lines)


def _kept(path: Path) -> dict[str, str]:
    """The sections of the existing page."""
    if not path.exists():
        return {}
    parts = re.split(r"^## (.+)\n", path.read_text(), flags=re.M)
    names = {title: name for name, title in TITLES.items()}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {names[title]: body.strip() for title, body in pairs if title in names}


def _training(lines: list[Line], folder: Path, where: str) -> None:
    from training.studies.memory_fit import equation, fit

    every = tables.training(lines)
    one = every[0].runs[0]
    model = next((run["model"] for series in every for run in series.runs if "model" in run), 0)
    parts = [
        f"# A training step of CARL by clip length\n\n{_rehearsal(lines)}{where}",
        f"{one['backbone']}, {one['size']} px, {one['videos']} videos of two views of T frames, "
        "random pixels, Adam; the frozen stages as in `recipes/carl.yaml`. Peak: of PyTorch's "
        f"allocator above the model and Adam ({model / 1e6:.0f} MB). Time: from frames on the "
        "device to the updated weights. Loss: forward and backward of `scl_loss` alone, including "
        "launches. A simulated card is a limit on the allocator, which leaves out CUDA's own "
        "memory.",
    ]
    result = {"where": where, "series": []}
    for series in every:
        line = fit(series.runs)
        text = f"Peak = {equation(line)}." if line else "Too few lengths for a line."
        parts.append(f"## {series.title}\n\n{series.table.markdown()}\n\n{text}")
        runs = [{k: v for k, v in run.items() if k != "phase"} for run in series.runs]
        result["series"].append({"title": series.title, "fit": line, "runs": runs})
    bad = tables.problems(of(lines, "train"), False)
    if bad:
        parts.append("\n".join(["Failed:", "", *(f"- {text}" for text in bad)]))
    (folder / "training_step.md").write_text("\n\n".join(parts) + "\n")
    (folder / "training_step.json").write_text(json.dumps(result, indent=1) + "\n")
