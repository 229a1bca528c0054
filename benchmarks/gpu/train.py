"""Phase train: ``python -m benchmarks.gpu.train PRECISION[,GB] ...``, a step of CARL by clip
length.

ResNet-50, 224 px, 4 videos of two views, random frames. The length doubles until memory or time
runs out; the last length is the longest that should fit by the line through the peaks. With GB, the
allocator is limited to the memory of such a card. The step is that of training/, built without a
recipe.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import record
from benchmarks.timing import CPUCall, GPUCall
from training.loop.objectives import Clips
from training.loop.optimizer import make_optimizer
from training.loop.pair_step import PairStep
from training.loop.precision import DTYPES
from training.models import build_model
from training.recipe.schema import Config, plain_config
from training.studies.memory_fit import fit
from training.studies.memory_step import measure_step, random_batch

FIRST, DRY_LENGTHS = 240, (8, 16)
ROUND = 120  # frames; the last length is a multiple of this
SURE = 0.97  # share of the predicted length that is tried, since an allocator leaves gaps
REPEATS_BELOW_S = 4.0
DRY_VALUES = {
    "data.batch_size": 1,
    "augmentation.size": 32,
    "model.backbone": "small_cnn",
    "model.train_from": "all",
    "model.fc_size": 32,
    "model.hidden_size": 32,
    "model.ff_size": 32,
    "model.layers": 1,
}


def make_step(cfg: Config, precision: str) -> PairStep:
    """With random weights: neither time nor memory depends on them."""
    torch.manual_seed(0)
    device = torch.device(record.device())
    model = build_model(cfg).to(device).train()
    optimizer = make_optimizer(cfg, model)
    return PairStep(cfg, model, optimizer, device, DTYPES[precision])


def measure(cfg: Config, step: PairStep, frames: int) -> dict[str, Any]:
    """Peak of one step, its seconds with the frames on the device, and the seconds of the loss."""
    found = measure_step(cfg, step, frames)
    batch = random_batch(cfg, frames)
    copying = _seconds(lambda: batch["frames"].to(step.device), step)
    seconds = found["seconds"]
    if seconds < REPEATS_BELOW_S and record.left() > 4 * seconds:
        again = [_seconds(lambda: step([batch], cfg.optim.lr, list), step) for _ in range(2)]
        seconds = min(again)
    # A GPU decoder leaves the frames on the GPU.
    seconds -= min(copying, 0.9 * seconds)
    found |= {"seconds": seconds, "copy_seconds": copying}
    found["frames_per_s"] = batch["valid"].numel() / seconds
    found["loss_seconds"] = loss_seconds(cfg, step, batch)
    found["loss_share"] = found["loss_seconds"] / seconds
    return found


def _seconds(run: Callable[[], Any], step: PairStep) -> float:
    def wait() -> None:
        if step.device.type == "cuda":
            torch.cuda.synchronize(step.device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def loss_seconds(cfg: Config, step: PairStep, batch: dict[str, Any]) -> float:
    """Seconds of forward and backward of the objective alone, including its launches."""
    n, clips, t = batch["valid"].shape
    device, dtype = step.device, step.precision
    kept = [batch[key].to(device) for key in ("steps", "valid", "num_frames")]
    shape = (n, clips, t, cfg.model.projection_size)
    z = torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    def loss(z: torch.Tensor) -> torch.Tensor:
        return step.objective(Clips(z, z, *kept, batch["actions"]))[0]

    if device.type == "cuda":
        return GPUCall(loss, [(z,)], 1.0, graph=False).wall()
    call = CPUCall(loss, (z,), 1.0)
    call()
    return call()["both"]


def series(
    one: Callable[[int], dict[str, Any]], lengths: list[int], limit: int, note: Callable
) -> None:
    """Increase the length until memory runs out, then try the longest that the line through the
    peaks predicts to fit in ``limit`` bytes. ``note(frames, result)`` is called after each.
    """
    runs: list[dict[str, Any]] = []
    full = None  # the shortest length that was too long
    for frames in lengths:
        # Twice the length takes twice the time, plus the time to draw its frames.
        if runs and record.left() < 2.5 * runs[-1]["took"] + 2:
            note(frames, {"error": "no time left"})
            return
        found = attempt(one, frames)
        note(frames, found)
        if "error" in found:
            full = frames
            break
        runs.append(found)
    line = fit(runs)
    if full is None or line is None or line["b"] <= 0:
        return
    room = SURE * (limit - runs[-1]["model"]) - line["a"]
    longest = min(int(room / line["b"]) // ROUND * ROUND, full - ROUND)
    if longest > runs[-1]["frames"]:
        if record.left() < 2.5 * runs[-1]["took"] + 2:
            note(longest, {"error": "no time left"})
        else:
            note(longest, attempt(one, longest))


def attempt(one: Callable[[int], dict[str, Any]], frames: int) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        return one(frames) | {"took": round(time.perf_counter() - start, 1)}
    except RuntimeError as error:
        # Libraries that allocate beside PyTorch's allocator raise errors of their own type.
        if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):
            raise
        return {"frames": frames, "error": "out of memory"}


def run(precision: str, gigabytes: float | None = None) -> None:
    cfg = plain_config(DRY_VALUES if record.dry() else {})
    limit, name = 0, precision
    if not record.dry():
        total = limit = torch.cuda.get_device_properties(0).total_memory
        if gigabytes is not None:
            limit = int(gigabytes * 1e9)
            if limit >= total:
                why = f"the card has {total / 1e9:.0f} GB"
                record.say("train", f"{precision}, {gigabytes:.0f} GB", ok=None, error=why)
                return
            torch.cuda.set_per_process_memory_fraction(limit / total)
    if gigabytes is not None:
        name += f", {gigabytes:.0f} GB"

    def note(frames: int, found: dict[str, Any]) -> None:
        fields = {"precision": precision, "limit_gb": gigabytes, "frames": frames} | found
        fields |= {"videos": cfg.data.batch_size, "size": cfg.augmentation.size}
        fields |= {"backbone": cfg.model.backbone}
        # Out of memory is a result; out of time is not.
        ok = None if found.get("error") == "no time left" else True
        record.say("train", f"{name}, T = {frames}", ok=ok, **fields)

    def one(frames: int) -> dict[str, Any]:
        if not record.dry():
            torch.cuda.empty_cache()  # free the last length's memory for this one
        return measure(cfg, step, frames)

    step = make_step(cfg, precision)
    lengths = list(DRY_LENGTHS) if record.dry() else [FIRST << k for k in range(12)]
    warm_up = attempt(lambda t: {"loss": step([random_batch(cfg, t)], 1e-4, list).loss}, lengths[0])
    if "error" in warm_up:
        note(lengths[0], warm_up)
        return
    try:
        series(one, lengths, limit, note)
    except Exception as error:
        record.failed("train", name, error)
        raise


def main(argv: list[str]) -> None:
    for one in argv:
        precision, *gigabytes = one.split(",")
        run(precision, *map(float, gigabytes))


if __name__ == "__main__":
    main(sys.argv[1:])
