"""docs/troubleshooting.md shows messages as they are: each is provoked here and compared."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from runs import RECIPE

import fastseq
from fastseq.video import open_engine
from training import align, evaluate, prepare, train
from training.data.index import build_index
from training.support.command import missing_extra
from training.support.distributed import check_restarts

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()

# Messages that cannot be provoked on every machine, or not quickly, by a part of them.
ELSEWHERE = {
    "building without the CUDA extension": "pip install without nvcc: tests/test_packaging.py",
    "FASTSEQ_BUILD=cuda, but": "pip install without nvcc: tests/test_packaging.py",
    "PyTorch sees no CUDA device": "python -m fastseq.info without a GPU",
    "No module named 'training'": "Python's own",
    "the weights of efficientnet_lite0": "an environment without the extra",
    "torch.OutOfMemoryError": "PyTorch's own",
    "needs a CUDA device": "where DALI is installed",
    "the loss or its gradient was not finite": "20 steps: test_train.py",
    "was lost (killed, stopped or cut off)": "several processes: test_lost_rank.py",
    "one rank did not reach an operation": "several processes: test_lost_rank.py",
    "the connection between two ranks broke": "several processes: test_lost_rank.py",
}


def shown() -> dict[str, re.Pattern]:
    """Each message of the page, in one line: anything may be in place of "..."."""
    texts = re.findall(r"^```text\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    texts = [" ".join(text.split()) for text in texts]
    assert len(texts) == len(set(texts)) > 40
    return {text: re.compile(re.escape(text).replace(r"\.\.\.", ".*")) for text in texts}


SHOWN = shown()


def z(*shape: int) -> torch.Tensor:
    return torch.ones(shape or (2, 5, 4))


def twice():
    z1 = z().requires_grad_()
    loss = fastseq.scl_loss(z1, z(), backend="torch")
    (slope,) = torch.autograd.grad(loss, z1, create_graph=True)
    slope.sum().backward()


def restarts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        patch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
        patch.setenv("GROUP_WORLD_SIZE", "2")
        check_restarts()


def raised(call) -> str:
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        call()
    return str(caught.value)


CALLS = [
    lambda: fastseq.scl_loss(z().long(), z().long()),
    lambda: fastseq.soft_dtw(z().numpy(), z().numpy()),
    lambda: fastseq.scl_loss(z(4), z(4)),
    lambda: fastseq.scl_loss(z(), z(2, 5, 3)),
    lambda: fastseq.scl_loss(z(), z(), torch.arange(4), torch.arange(4)),
    lambda: fastseq.scl_loss(z(), z(), lengths1=[5, 6]),
    lambda: fastseq.scl_loss(z(), z(), valid1=z(2, 5)),
    lambda: fastseq.scl_loss(z(), z(), lengths1=[5, 5], valid1=z(2, 5).bool()),
    lambda: fastseq.scl_loss(z(), z(), temperature=0),
    lambda: fastseq.scl_loss(z(), z(), backend="cuda"),
    lambda: fastseq.soft_dtw(z(), z(), backend="cuda"),
    twice,
    lambda: open_engine("auto", ["a.mp4"], 32),
    restarts,
]

LABELS = [
    {"videos": {"a.mp4": {"boundries": [3]}}},
    {"videos": {"A.mp4": {"split": "test"}}},
    {"videos": {"a.mp4": {"boundaries": [3]}}},
    {"videos": {"a.mp4": {"boundaries": [3, 4]}}, "classes": {"all": ["x", "y"]}},
    {"videos": {"a.mp4": {"boundaries": [40]}}, "classes": {"all": ["x", "y"]}},
    {"videos": {"a.mp4": {"split": "validation"}}},
]

SPLITS = {"a.mp4": "test", "b.mp4": "train"}

TRAININGS = [
    ["tiny.yaml", "data.folder=empty"],
    ["carl.yml"],
    ["tiny.yaml", "optm.lr=1"],
    ["tiny.yaml", "data.test_split=tset"],
    ["tiny.yaml", "model.weights=resnet50.pth"],
    ["tiny.yaml", "model.backbone=resnet18", "model.weights=other.pth"],
    ["tiny.yaml", "model.backbone=resnet18", "model.train_from=layer4"],
    ["tiny.yaml", "loss.lav.weight=1", "loss.lav.gamma=-1", "data.clips=videos"],
    ["tiny.yaml", "data.clips=videos"],
    ["tiny.yaml", "train.device=cuda:99"],
    ["tiny.yaml", "data.engine=dali-gpu"],
]


def output(capsys, main, *arguments: str) -> str:
    """What a command prints; it has to refuse."""
    try:
        status = main([*arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status in (0, 1, 2)
    return "".join(capsys.readouterr())


@pytest.fixture
def messages(video_folder, capsys):
    """Everything that the commands say about mistakes of a first hour, in one small folder."""
    said = [raised(call) for call in CALLS]
    error = ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf")
    said.append(missing_extra(error, "training"))

    def run(main, *arguments: str) -> None:
        said.append(output(capsys, main, *arguments))

    run(prepare.main, "nowhere")
    Path("empty").mkdir()
    torch.save({"net.weight": torch.zeros(2)}, "other.pth")
    Path("tiny.yaml").write_text(RECIPE.replace("steps: 12", "steps: 1"))
    for arguments in TRAININGS:
        run(train.main, *arguments, "train.run_dir=refused")
    run(prepare.main, "empty")
    Path("empty/frames").mkdir()
    for number in range(4):
        for kind in ("img", "flow"):
            Path(f"empty/frames/{kind}_{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    run(prepare.main, "empty")
    broken = shutil.copytree(video_folder, "broken")
    Path(broken, "b.mp4").write_bytes(b"hello" * 500)
    Path(broken, "c.mp4").write_bytes(b"")
    run(prepare.main, "broken")
    labels = video_folder / "labels.json"
    for content in [*map(json.dumps, LABELS), "{'videos': {}}"]:
        labels.write_text(content)
        run(prepare.main, str(video_folder))
    labels.unlink()
    build_index(video_folder, progress=False)
    run(train.main, "tiny.yaml", "train.run_dir=run")
    run(train.main, "tiny.yaml", "train.run_dir=run")
    run(train.main, "tiny.yaml", "train.run_dir=run", "train.steps=2", "--resume")
    run(evaluate.main, "videos")
    run(evaluate.main, "run")
    run(evaluate.main, "run", "--protocol", "sync")
    run(align.main, "a.mp4", "z.mp4", "--run", "run")
    run(align.main, "a.mp4", "b.mp4", "--run", "run", "--threshold", "0.5")
    labels.write_text('{"videos": {"a.mp4": {"split": "test"}}}')
    build_index(video_folder, progress=False)
    run(evaluate.main, "run")
    marked = {name: {"boundaries": [3], "split": split} for name, split in SPLITS.items()}
    labels.write_text(json.dumps({"classes": {"all": ["x", "y"]}, "videos": marked}))
    build_index(video_folder, progress=False)
    run(evaluate.main, "run")
    shutil.rmtree("run/checkpoints")
    run(evaluate.main, "run")
    return said


def test_messages_are_as_the_page_shows_them(messages):
    said = [" ".join(text.split()) for text in messages]
    unseen = {text for text, pattern in SHOWN.items() if not any(map(pattern.search, said))}
    expected = {text for text in SHOWN if any(part in text for part in ELSEWHERE)}
    assert unseen - expected == set()


def test_every_message_has_cause_and_remedy():
    entries = re.split(r"^```text\n", PAGE, flags=re.MULTILINE)[1:]
    for entry in entries:
        assert "\n**Cause.** " in entry, entry
        assert "\n**Remedy.** " in entry, entry


@pytest.mark.parametrize("part", ELSEWHERE)
def test_the_exceptions_are_on_the_page(part):
    assert part in PAGE
