"""The course of a call: phases in sequence or in parallel, each until its share of the budget is
spent. torch is not imported here, so the first processes start at once and a broken torch is
reported as a result.
"""

import contextlib
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu import build, pages, profile, record, sanitize, summary, tests
from benchmarks.gpu.processes import Runner, Step

ROOT = Path(__file__).parents[2]
PHASES = ("build", "smoke", "tests", "sanitize", "bench", "sweep", "profile", "train")
USUAL = PHASES[:6]
BUDGET_S = 420
# Files that a call writes to OUT; those of an earlier call are replaced.
FILES = (
    *("summary.txt", record.LINES, "log.txt", "tests.xml", "tests.log"),
    *("first_contact.md", "training_step.md", "results.tar.gz"),
)
LARGEST = 15_000_000
TRITON_OPS = ("scl", "contrastive_idm", "tcc", "queue_nce")
BENCH_GROUPS = ("first", "soft_dtw", "rest")
SMOKE_S, SMOKE_SOFT_DTW_S, BUILD_S, BENCH_SOFT_DTW_S = 75, 40, 150, 45
DRY_SLACK = 3  # factor of these limits: a rehearsal may share two cores with other work
# Weights by which the phases that need the GPU share the budget that is left after build and smoke.
# sanitize runs beside the tests and uses part of their share. Time that one phase leaves is passed
# on to the next ones.
WEIGHTS = {"tests": 40, "bench": 28, "profile": 12, "sweep": 17, "train": 40}
ALL_UNTIL, SANITIZE = 0.97, 0.85  # of the budget; of the tests' share
# Precision, and the memory in gigabytes of the card that is simulated.
TRAINED = ("bf16", "bf16,24", "fp32", "fp32,24")
DRY_TRAINED = ("bf16", "fp32,24")


@dataclass
class Call:
    """One call: its phases, its deadline, and its folders."""

    phases: tuple[str, ...]
    budget_s: float
    dry: bool
    out: Path
    python: str = sys.executable
    begin: float = field(default_factory=time.time)
    work: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fastseq-gpu-")))

    def __post_init__(self) -> None:
        self.results = self.work / "results" if self.dry else ROOT / "benchmarks" / "results"
        self.runner = Runner(ROOT, self.begin + self.budget_s)
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        workers = 0 if self.dry else max(2, self.cores * 5 // 8)  # 0: pytest without xdist
        self.workers = int(os.environ.get("WORKERS") or workers)

    def wants(self, phase: str) -> bool:
        return phase in self.phases

    def share(self, phase: str) -> float:
        """Seconds for a phase: its weight among the phases still to come, of the time left."""
        left = self.begin + ALL_UNTIL * self.budget_s - time.time()
        later = list(WEIGHTS)[list(WEIGHTS).index(phase) + 1 :]
        coming = [WEIGHTS[phase], *(WEIGHTS[p] for p in later if self.wants(p))]
        return left * WEIGHTS[phase] / sum(coming)

    def per_process(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Groups that share a process. On a GPU each has its own process, since one that hangs
        would stop the others. A rehearsal has one process for all, because most of its time is the
        import of torch.
        """
        return [names] if self.dry else [(name,) for name in names]

    def child(self, phase: str, name: str, limit_s: float, module: str, *argv: str) -> Step:
        log = self.work / f"{phase}_{name.replace(' ', '_').replace(',', '')}.log"
        command = [self.python, "-m", f"benchmarks.gpu.{module}", *argv]
        return Step(phase, name, command, limit_s, log)

    def say(self, text: str) -> None:
        line = f"[{time.time() - self.begin:4.0f} s] {text}"
        print(line, flush=True)
        record.append(self.out / "log.txt", line + "\n")


def run(call: Call) -> int:
    """Returns the exit status: 0, or 1 if smoke or tests were selected and did not pass."""
    call.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (call.out / name).unlink(missing_ok=True)
    call.results.mkdir(parents=True, exist_ok=True)
    os.environ.update(_environment(call))
    previous = signal.signal(signal.SIGTERM, _interrupt)
    ended = "ended"
    try:
        _course(call)
    except KeyboardInterrupt:
        ended = "interrupted"
    finally:
        call.runner.stop()
        signal.signal(signal.SIGTERM, previous)
        _finish(call, ended)
        shutil.rmtree(call.work, ignore_errors=True)
    return 130 if ended == "interrupted" else summary.status(call.out, call.phases)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _environment(call: Call) -> dict[str, str]:
    """Environment of every process. BLAS uses one thread, or many processes would compete for the
    cores.
    """
    mine = {"OUT": str(call.out), "RESULTS": str(call.results), "DRY": str(int(call.dry))}
    mine |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    mine |= {"PYTHONPATH": os.pathsep.join(paths)}
    defaults = {
        "TRITON_CACHE_DIR": str(call.work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(call.work / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "8",
    }
    for name in ("TRITON_INTERPRET", "PYTEST_ADDOPTS"):
        os.environ.pop(name, None)
    if call.dry:
        mine |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return mine | {name: os.environ.get(name, value) for name, value in defaults.items()}


def _course(call: Call) -> None:
    call.say(f"phases: {' '.join(call.phases)}; budget {call.budget_s:.0f} s; results: {call.out}")
    machine = call.runner.start([call.child("machine", "environment", 60, "environment")])
    soft_dtw = _build_and_smoke(call)
    _tests_and_beside(call, soft_dtw)
    for future in machine:
        future.result()
    for phase, alone in ALONE.items():
        if call.wants(phase):
            alone(call, call.share(phase))
            call.say(f"{phase} is over")
            _keep_results(call)


def _build_and_smoke(call: Call) -> bool:
    """Whether soft_dtw's tests may run: its kernels wait for each other and may hang."""
    building: list[Future] = []
    if call.wants("build"):
        building = call.runner.start([build.step(call.python, call.dry, BUILD_S, call.work)])
    smoking: list[Future] = []
    if call.wants("smoke"):
        smoking = call.runner.start(smoke_steps(call, TRITON_OPS, SMOKE_S))
    for future in building:
        future.result()
    sound = True
    if call.wants("smoke"):
        (status,) = call.runner.together(smoke_steps(call, ("soft_dtw",), SMOKE_SOFT_DTW_S))
        sound = status == 0
    for future in smoking:
        future.result()
    if building or smoking:
        call.say("build and smoke are over")
    return sound


def smoke_steps(call: Call, ops: tuple[str, ...], limit_s: float) -> list[Step]:
    limit_s *= DRY_SLACK if call.dry else 1
    return [
        call.child("smoke", " ".join(group), limit_s, "smoke", *group)
        for group in call.per_process(ops)
    ]


def _tests_and_beside(call: Call, soft_dtw: bool) -> None:
    """Run the tests, with compilers on the CPU and the sanitizer on the GPU beside them."""
    seconds = call.share("tests")
    beside: list[Future] = []
    if call.wants("sweep") or call.wants("bench"):
        beside += call.runner.start(compile_steps(call, seconds))
    if call.wants("sanitize"):
        limit = SANITIZE * seconds
        beside += call.runner.start(sanitize.steps(call.python, call.dry, limit, call.work))
    if call.wants("tests"):
        call.runner.run(test_step(call, soft_dtw, seconds))
        call.say("tests are over")
    for future in beside:
        future.result()


def compile_steps(call: Call, limit_s: float) -> list[Step]:
    parts = 4 if call.cores > 8 else 1
    return [
        call.child("compile", f"part {k}", limit_s, "compile", str(k), str(parts))
        for k in range(parts)
    ]


def test_step(call: Call, soft_dtw: bool, limit_s: float) -> Step:
    return tests.step(
        call.python,
        dry=call.dry,
        workers=call.workers,
        soft_dtw=soft_dtw,
        limit_s=limit_s,
        out=call.out,
    )


def _bench(call: Call, seconds: float) -> None:
    end = time.time() + seconds
    for groups in call.per_process(BENCH_GROUPS):
        limit = end - time.time()
        if groups == ("soft_dtw",):
            limit = min(limit, BENCH_SOFT_DTW_S)
        call.runner.run(call.child("bench", " ".join(groups), limit, "bench", *groups))


def _sweep(call: Call, seconds: float) -> None:
    call.runner.run(call.child("sweep", "tiles", seconds, "sweep"))


def _profile(call: Call, seconds: float) -> None:
    for step in profile.steps(call.python, call.dry, seconds, call.work):
        call.runner.run(step)
    profile.report(call.work)


def _train(call: Call, seconds: float) -> None:
    """Run precisions and cards in sequence; time that one leaves is passed on to the next."""
    end = time.time() + seconds
    every = call.per_process(DRY_TRAINED if call.dry else TRAINED)
    for k, cards in enumerate(every):
        limit = 1.5 * (end - time.time()) / (len(every) - k)
        limit = min(limit, end - time.time())
        name = ", ".join(map(_in_words, cards))
        call.runner.run(call.child("train", name, limit, "train", *cards))


def _in_words(card: str) -> str:
    precision, _, gigabytes = card.partition(",")
    return f"{precision} in {gigabytes} GB" if gigabytes else precision


ALONE = {"bench": _bench, "profile": _profile, "sweep": _sweep, "train": _train}


def _finish(call: Call, ended: str) -> None:
    """Collect logs, write pages and the summary, with the results that exist."""
    seconds = time.time() - call.begin
    with (call.out / "log.txt").open("a") as log:
        for path in sorted(call.work.glob("*.log")):
            log.write(f"##### {path.name}\n{_end_of(path, 400_000)}\n")
    lines = record.read(call.out / record.LINES)
    wanted = {"phases": call.phases, "dry": call.dry, "budget_s": call.budget_s}
    text = summary.text(lines, call.out, sanitize.findings(call.work), **wanted)
    text += f"\n{ended} after {seconds:.0f} s of {call.budget_s:.0f}\n"
    (call.out / "summary.txt").write_text(text)
    slug = next((line["slug"] for line in lines if "slug" in line), None)
    if slug is not None:
        pages.write(lines, call.out, call.results / slug, call.phases, sanitize.findings(call.work))
        for name in ("first_contact.md", "training_step.md"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(call.results / slug / name, call.out / name)
    _keep_results(call)
    for name in FILES:
        path = call.out / name
        if path.exists() and path.stat().st_size > LARGEST:
            path.write_text(_end_of(path, LARGEST - 1_000_000))
    print(text, flush=True)
    where = call.results / slug if slug and not call.dry else None
    print(f"{call.out}: {', '.join(name for name in FILES if (call.out / name).exists())}")
    if where:
        print(f"{where}: pages and CSV files of this card, to be committed")


def _keep_results(call: Call) -> None:
    """Pack <device>/ of benchmarks/results into one file in OUT, to copy it from a remote
    machine.
    """
    lines = record.read(call.out / record.LINES)
    slug = next((line["slug"] for line in lines if "slug" in line), None)
    if slug is None or not (call.results / slug).is_dir():
        return
    part = call.out / "results.tar.gz.part"
    with tarfile.open(part, "w:gz") as archive:
        archive.add(call.results / slug, arcname=slug)
    part.replace(call.out / "results.tar.gz")


def _end_of(path: Path, size: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")
