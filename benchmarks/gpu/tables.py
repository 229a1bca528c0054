"""Result lines as tables of at most four columns, for the summary and the pages."""

from collections import Counter
from typing import Any, NamedTuple

Line = dict[str, Any]
WORDS = {True: "ok", False: "FAILED", None: "not run"}


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        cells = [self.columns, *self.rows]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )

    def markdown(self) -> str:
        cells = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells
        )


def of(lines: list[Line], phase: str) -> list[Line]:
    return [line for line in lines if line["phase"] == phase]


def phases(lines: list[Line], wanted: tuple[str, ...]) -> Table:
    rows = []
    for phase in dict.fromkeys([*wanted, *(line["phase"] for line in lines)]):
        counts = Counter(WORDS[line.get("ok")] for line in of(lines, phase))
        rows.append((phase, *(str(counts[word]) for word in WORDS.values())))
    return Table(("phase", *WORDS.values()), rows)


def problems(lines: list[Line], ok: bool | None) -> list[str]:
    """What failed or was not run, with the reason; all that had no time left in one line."""
    found, late = [], {}
    for line in lines:
        if line.get("ok") is not ok:
            continue
        reason = str(line.get("error") or line.get("note") or "")
        if ok is None and reason == "no time left":
            late.setdefault(line["phase"], []).append(line["name"])
        else:
            found.append(f"{line['phase']}: {line['name']}: {reason or _numbers(line)}")
    found += [f"{phase}: no time left for {', '.join(names)}" for phase, names in late.items()]
    return [text[:300] for text in found]


def _numbers(line: Line) -> str:
    keys = ("loss_error", "gradient_error", "same_bits", "rc")
    return ", ".join(f"{key} {line[key]}" for key in keys if key in line)


def smoke(lines: list[Line]) -> Table:
    rows = []
    for line in of(lines, "smoke"):
        if "same_bits" not in line:
            continue
        errors = " / ".join(line[key] for key in ("loss_error", "gradient_error") if key in line)
        bits = "yes" if line["same_bits"] else "NO: a race"
        rows.append((line["name"], errors or "-", bits, str(line.get("first_s", "-"))))
    return Table(("case", "error of loss / gradients", "same bits", "first call, s"), rows)


KNOWN = ("op", "shape", "precision", "forward_us", "both_us", "wall_us", "predicted_us", "timer")
BENCH = (
    "case",
    "forward / both / with the host, us",
    "predicted, us",
    "timer, gradient error, notes",
)


def bench(lines: list[Line]) -> Table:
    """Times of forward, of forward and backward, and of both in a loop that includes the
    launches.
    """
    rows = []
    for line in of(lines, "bench"):
        if "op" not in line:
            continue
        times = [line.get(key, "-") for key in ("forward_us", "both_us", "wall_us")]
        notes = [str(line.get("timer", "")), str(line.get("gradient_error", ""))]
        if "percent_of_floor" in line:
            notes.append(f"{line['percent_of_floor']} % of the floor")
        known = {*KNOWN, "gradient_error", "percent_of_floor", "iqr_ms", "peak_mb", "note"}
        known |= {"phase", "name", "ok", "at"}
        notes += [f"{key} {value}" for key, value in line.items() if key not in known]
        notes.append(line.get("note", ""))
        shape = ", ".join(map(str, line["shape"]))
        case = f"{line['op']} ({shape}) {line['precision']}"
        predicted = str(line.get("predicted_us", "-"))
        rows.append((case, _three(times), predicted, "; ".join(filter(None, notes))[:160]))
    return Table(BENCH, rows)


def _three(times: list[Any]) -> str:
    return " / ".join(map(str, times))


def sweep(lines: list[Line]) -> Table:
    rows = []
    for line in of(lines, "sweep"):
        if "us" not in line:
            continue
        used = [f"{line[key]} {key}" for key in ("registers", "spills") if key in line]
        text = "; ".join([*used, *filter(None, [line.get("note")])]) or "-"
        time = f"{line['us']} ({line['mode']}), {line['of_default']}"
        rows.append((line["what"], line["change"], time, text))
    return Table(("kernel", "change", "us (pass), ratio to shipped", "resources"), rows)


def profile(lines: list[Line]) -> Table:
    rows = []
    hidden = {"phase", "name", "ok", "at", "duration", "registers"}
    for line in of(lines, "profile"):
        if "duration" in line:
            rest = ", ".join(f"{key} {value}" for key, value in line.items() if key not in hidden)
            rows.append((line["name"], line["duration"], line.get("registers", "-"), rest))
    return Table(("launch", "duration", "registers", "limits"), rows)


class Series(NamedTuple):
    """Lengths of one precision on one card, real or simulated."""

    title: str
    table: Table
    runs: list[Line]


def training(lines: list[Line]) -> list[Series]:
    found: dict[tuple, list[Line]] = {}
    for line in of(lines, "train"):
        if "frames" in line:
            found.setdefault((line["precision"], line.get("limit_gb")), []).append(line)
    return [
        Series(
            precision + (f", a card of {limit:.0f} GB" if limit else ", the whole card"),
            Table(TRAINING, [_length(line) for line in sorted(runs, key=lambda r: r["frames"])]),
            runs,
        )
        for (precision, limit), runs in found.items()
    ]


TRAINING = ("T", "peak above the model, GB", "step, s (frames/s)", "loss, % of the step")


def _length(line: Line) -> tuple[str, ...]:
    if "peak" not in line:
        return str(line["frames"]), line.get("error", "-"), "-", "-"
    speed = f"{line['seconds']:.3g} ({line['frames_per_s']:.0f})"
    share = f"{100 * line['loss_share']:.2g}"
    return str(line["frames"]), f"{line['peak'] / 1e9:.2f}", speed, share
