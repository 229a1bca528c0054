"""The keys of a recipe: types, defaults and limits. This file does not need omegaconf."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastseq.video.augment import Augmentation
from fastseq.video.engines.choose import ENGINES
from fastseq.video.sampling import CLIP_SAMPLING, VIEW_SAMPLING
from fastseq.video.tuples import ANCHORS
from training.data.label_values import SPLITS
from training.models.backbone import POOLS
from training.recipe.fields import above, anything, at_least, one_of, share
from training.recipe.losses import LossConfig

# ``may_change=True`` marks the keys that may change when a run is resumed. They affect where it
# runs and what it writes, not what it learns (except max_minutes, which sets the cosine's end).

NAMES = {"names": True}  # marks a key with a name or a list of names
# data.clips with clips of data.tuple_frames frames: the clips of an item in each of the
# data.segments, and further ones.
SHORT_CLIPS = {"tuples": (2, 1), "segments": (1, 0), "blocks": (1, 0)}


@dataclass
class WhereConfig:
    """Filters by what labels.json states about a video: a name or a list of names each.

    They apply to training and to evaluation. Several filters leave the videos that pass all of
    them. null: no filter.
    """

    split: Any = field(default=None, metadata=NAMES)
    view: Any = field(default=None, metadata=NAMES)  # of the camera, such as ego
    action: Any = field(default=None, metadata=NAMES)  # as data.action


@dataclass
class DataConfig:
    """The videos, and how the two clips of an item are drawn from them.

    ``clips``: "views", two views of one video; "videos", two videos of one action; "synchronised",
    two synchronised videos of one event (`fastseq.video.SynchronisedViews`); "tuples", VCLR's
    tuples (`fastseq.video.SegmentTuples`; keys segments, anchor, reversal, tuple_frames,
    tuple_stride); "segments", a clip of each segment of a labelled video
    (`fastseq.video.SegmentClips`; keys segments, tuple_frames, tuple_stride); "blocks", DPC's
    consecutive blocks (`fastseq.video.ConsecutiveBlocks`; segments blocks of tuple_frames frames,
    tuple_stride apart).
    """

    # A folder that python -m training.prepare has prepared, or a list of several: [penn, my_clips].
    folder: Any = field(default="", metadata=NAMES | {"may_change": True})
    # With several folders, the share of each in the videos of an epoch: a number above 0 for each
    # folder, in their order, divided by their sum. null: an epoch has every video once.
    weights: list[float] | None = None
    action: Any = field(default=None, metadata=NAMES)  # only the videos of these actions; null: all
    where: WhereConfig = field(default_factory=WhereConfig)
    # The classes of the phases if labels.json has several sets, such as gym99; null: the first.
    class_set: str | None = anything(None, may_change=True)
    clips: str = one_of("views", "views", "videos", "synchronised", "tuples", "segments", "blocks")
    num_frames: int = at_least(240, 2)  # T, frames per clip of views, videos and synchronised
    batch_size: int = at_least(4, 1)  # items per batch, over all ranks
    # R: so many consecutive ranks share every clip, and each decodes and encodes num_frames / R of
    # its frames, in order. What is drawn (frames, crops, colours) does not depend on R; a change of
    # contrast keeps the mean of a part, not of the clip. Only loss.scl and loss.classification
    # support R > 1, because other losses compare whole clips. torchrun must start a multiple of R
    # ranks.
    split_time: int = at_least(1, 1, may_change=True)
    # "random" and "even" draw frames within a temporal crop of the video (CARL, section 3.2); the
    # next four keys describe the crop, see fastseq.video.sample_views. The others draw from the
    # whole video, see fastseq.video.sample_clip.
    sampling: str = one_of("random", *VIEW_SAMPLING, *CLIP_SAMPLING)
    crop_base: str = one_of("clip", "clip", "video", "span")
    alpha: float = at_least(1.5, 1)
    beta: float = share(0.2)
    span: tuple[float, float] = (0.3, 1.0)
    positive_window: int = at_least(5, 1)  # with sampling=anchors: largest distance in frames
    num_context: int = at_least(1, 1)  # frames per embedding: the frame and earlier ones
    context_stride: int = at_least(15, 1)  # distance between these, in frames
    segments: int = at_least(3, 1)  # S; a tuple has one clip of each segment, and S is at least 2
    tuple_frames: int = at_least(1, 1)  # L, frames of each clip of a tuple, segment or block
    tuple_stride: int = at_least(1, 1)  # distance between them, in frames of the video
    anchor: str = one_of("ends", *ANCHORS)  # segments from which the anchor is drawn
    reversal: bool = False  # whether a shuffled tuple may be in exactly reversed order
    engine: str = one_of("auto", *ENGINES)  # decoder; auto: the fastest that works
    # ram: decoded frames, in memory; features: features of a frozen backbone, on disk.
    cache: str = one_of("none", "none", "ram", "features", may_change=True)
    # With cache=features: number of augmented versions of each video; 0: the video unaugmented.
    feature_draws: int = at_least(0, 0)
    cache_side: int | None = at_least(None, 1)  # shorter side of cached frames, in pixels
    # Decoding processes (PyAV) or threads (DALI); 0: this process (PyAV), all cores (DALI).
    workers: int = at_least(4, 0, may_change=True)
    train_split: str = one_of("train", *SPLITS)
    val_split: str = one_of("val", *SPLITS)
    test_split: str = one_of("test", *SPLITS)


@dataclass
class ModelConfig:
    """The encoder and the projection head (CARL, sections 3.3 and 3.4).

    ``encoder``: "fve", CARL's frame-level video encoder; "conv3d", that of TCC and LAV:
    convolutions over a frame and its context, no attention, no positions; "vclr": the backbone
    alone, with one head of ``projection_hidden`` and ``projection_size`` for each of VCLR's losses;
    "tsn", a temporal segment network: the backbone and a linear classifier of actions; "dpc": the
    backbone and a recurrent network over the maps of blocks.
    """

    encoder: str = one_of("fve", "fve", "conv3d", "vclr", "tsn", "dpc")
    # small_cnn, resnet18, 34, 50, 101, efficientnet_lite0; timm:NAME; package.module:function. Of
    # clips, with encoder vclr, tsn or dpc: small_cnn3d, r3d_18, r3d_50, r2plus1d_18, s3d.
    backbone: str = "resnet50"
    backbone_to: str = "last"  # last stage that runs: last, stride8, stride16, or a stage's name
    # TSM: this share of the channels, 1 / shift, is taken from the frame before, and as much from
    # the frame after; 8 in TSM, 0: none. tsn with a resnet only.
    shift: int = at_least(0, 0)
    pool: str = one_of("max", *POOLS)  # pooling of the last map; grid: means of 4 x 4 fields
    # First stage that is trained: all, last, none, batch_norm, or a stage's name.
    train_from: str = "last"
    # Pre-trained weights: "package", a file, or a run directory of python -m training.train.
    weights: str | None = anything(None, may_change=True)
    # The network to use if the file holds several, such as teacher.
    weights_key: str | None = anything(None, may_change=True)
    # What to load: the backbone, or the whole model of a run.
    weights_parts: str = one_of("backbone", "backbone", "all")
    random_frozen: bool = False  # whether a frozen part may have random weights
    centre: bool = False  # subtract the mean over the clip's real frames from features; fve only
    # Share of the backbone's features in the squared length of the embeddings that are evaluated,
    # saved and aligned; the trained part has the rest. The loss does not see them. fve only.
    backbone_share: float = anything(0.0, minimum=0, maximum=0.99, may_change=True)
    image_size: int = "${augmentation.size}"
    num_frames: int = "${data.num_frames}"
    num_context: int = "${data.num_context}"
    context_stride: int = "${data.context_stride}"
    conv3d_layers: int = at_least(2, 1)
    conv3d_size: int = at_least(512, 1)
    fc_layers: int = at_least(2, 0)
    fc_size: int = at_least(512, 1)
    fc_dropout: float = share(0.1)
    layers: int = at_least(3, 0)  # this key and the next five: fve only
    hidden_size: int = at_least(256, 2)
    heads: int = at_least(8, 1)
    ff_size: int = at_least(1024, 1)
    dropout: float = share(0.1)
    positions: str = one_of("vaswani", "vaswani", "released", "none")
    embedding_size: int = at_least(128, 1)
    projection_hidden: int = at_least(128, 1)
    projection_size: int = at_least(128, 1)


@dataclass
class OptimConfig:
    """The optimizer, its learning rate, and the average of the weights.

    The learning rate rises from lr / 100 to lr during the warm-up. Then the schedule applies: half
    a cosine to ``min_lr``, or constant, or steps at ``milestones``.
    """

    # The weight decay of adam and sgd is coupled: it is added to the gradient, and Adam divides it
    # by the gradient's size. That of adamw is decoupled: it shrinks the weights by lr *
    # weight_decay at each step, so it usually has a larger value, such as 0.01.
    name: str = one_of("adam", "adam", "adamw", "sgd")
    lr: float = at_least(1e-4, 0)
    # Learning rate of the backbone's parameters, which follows the schedule in proportion; null:
    # lr.
    backbone_lr: float | None = above(None, 0)
    weight_decay: float = at_least(1e-5, 0)
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam and AdamW
    momentum: float = share(0.9)  # of SGD
    schedule: str = one_of("cosine", "cosine", "constant", "step")
    min_lr: float = at_least(0.0, 0)  # at the end of the cosine
    # Of schedule=step: epochs from the start of the run, in rising order. Each multiplies the
    # learning rate by gamma.
    milestones: list[float] = field(default_factory=list)
    gamma: float = anything(0.1, above=0, maximum=1)
    warmup_steps: int = at_least(0, 0)  # set steps or epochs
    warmup_epochs: float = at_least(0.0, 0)
    grad_clip: float | None = above(10.0, 0)  # largest gradient norm; null: no clipping
    # Decay of the moving average of the trained weights, such as 0.999, which is evaluated and
    # exported; null: no average.
    ema: float | None = anything(None, minimum=0, maximum=0.999999)


@dataclass
class TrainConfig:
    """Duration and device of the training, and what it writes."""

    run_dir: str = anything("", may_change=True)  # default: runs/<name of the recipe>
    steps: int | None = at_least(None, 1)  # set steps or epochs
    epochs: int | None = at_least(None, 1)
    # Stops the run after this time and ends the cosine there: the result then depends on the
    # machine's speed.
    max_minutes: float | None = above(None, 0, may_change=True)
    seed: int = at_least(0, 0)
    accumulate: int = at_least(1, 1)  # batches of data.batch_size per step of the optimizer
    device: str = anything("auto", may_change=True)  # auto: cuda if available
    # auto: bf16 if CUDA supports it, else fp32. fp16, for older GPUs, with a scaled loss.
    precision: str = one_of("auto", "auto", "fp32", "bf16", "fp16")
    # Frames per backbone call; 0: all at once. Memory grows with this number, not with the length
    # of the clips; batch norms of the backbone compute their statistics over these frames. null:
    # 80, as in CARL's code, but 8 on a CPU if no batch norm computes statistics (twice as fast).
    chunk_frames: int | None = at_least(None, 0)
    # Keep only the inputs of the backbone's trained part, the fc block and the Transformer's
    # branches for backward, and recompute these parts: less memory, the same gradients.
    checkpointing: bool = anything(True, may_change=True)
    # torch.compile of the backbone; the first steps take minutes.
    compile: bool = anything(False, may_change=True)
    log_every: int = at_least(20, 1, may_change=True)  # steps
    checkpoint_every: int = at_least(1000, 1, may_change=True)  # steps
    # Steps between evaluations on the val videos, or on the test videos where there are none, which
    # the report plots; null: no evaluation.
    evaluate_every: int | None = at_least(None, 1, may_change=True)
    # Metric of these evaluations by which RUN/checkpoints/best.pt is chosen, such as
    # classification; null: no such file.
    keep_best: str | None = anything(None, may_change=True)
    # Evaluations without a better keep_best after which the run stops; null: it does not.
    patience: int | None = at_least(None, 1, may_change=True)
    keep_checkpoints: int = at_least(2, 1, may_change=True)
    # Consecutive steps without a finite loss after which the run stops.
    max_nonfinite: int = at_least(20, 1, may_change=True)
    # Seconds that one rank waits for another, evaluations of rank 0 included, before all end; null:
    # torch's 1800.
    timeout: float | None = above(None, 0, maximum=1e6, may_change=True)
    # Bitwise identical results from run to run on a GPU; slower.
    deterministic: bool = anything(False, may_change=True)


@dataclass
class LogConfig:
    """Where the numbers of log.jsonl and evaluations.jsonl are shown too.

    The last three keys are wandb's; it needs ``pip install "fastseq[wandb]"``.
    """

    # none, tensorboard (RUN/tensorboard), wandb (RUN/wandb), or a list of these.
    writer: Any = field(default="tensorboard", metadata=NAMES | {"may_change": True})
    project: str = anything("fastseq", may_change=True)
    name: str | None = anything(None, may_change=True)  # null: name of the run directory
    # offline: RUN/wandb has everything, and `wandb sync` uploads it later.
    mode: str = one_of("offline", "offline", "online", may_change=True)


# Former names of keys, for runs and recipes that still use them.
RENAMED = {"model.frames_per_chunk": "train.chunk_frames"}


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)


def plain_config(values: Mapping[str, Any]) -> Config:
    """The defaults with ``values`` such as {"data.num_frames": 480} set, without reading a recipe.

    Raises ValueError for an unknown key. Types and limits are not checked.
    """
    config = Config()
    for key, value in values.items():
        section, _, name = key.partition(".")
        if not hasattr(getattr(config, section, None), name):
            raise ValueError(
                f"unknown key {key!r}; expected a section and a key, such as data.num_frames"
            )
        # One of the sections is frozen.
        setattr(config, section, replace(getattr(config, section), **{name: value}))
    for one in fields(config.model):
        value = getattr(config.model, one.name)
        if isinstance(value, str) and value.startswith("${"):
            section, _, name = value[2:-1].partition(".")
            setattr(config.model, one.name, getattr(getattr(config, section), name))
    return config
