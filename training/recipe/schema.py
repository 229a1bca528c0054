"""The keys of a recipe: types, defaults and limits. This file does not need omegaconf."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from fastseq.ops.contrastive_idm.options import DISTANCES, KINDS, WEIGHTS
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS
from fastseq.ops.soft_dtw.options import COSTS
from fastseq.ops.tcc.options import LOSS_TYPES, SIMILARITIES
from fastseq.ops.vclr.op import FORMS as VCLR_FORMS
from fastseq.video.augment import Augmentation
from fastseq.video.engines.choose import ENGINES
from fastseq.video.sampling import CLIP_SAMPLING, VIEW_SAMPLING
from fastseq.video.tuples import ANCHORS
from training.data.label_values import SPLITS
from training.models.backbone import POOLS

# ``may_change=True`` marks the keys that may change when a run is resumed. They affect where it
# runs and what it writes, not what it learns (except max_minutes, which sets the cosine's end).

NAMES = {"names": True}  # marks a key with a name or a list of names


def _any(default: Any, **metadata: Any) -> Any:
    return field(default=default, metadata=metadata)


def _one_of(default: Any, *choices: Any, **metadata: Any) -> Any:
    return _any(default, choices=choices, **metadata)


def _above(default: Any, limit: float, **metadata: Any) -> Any:
    return _any(default, above=limit, **metadata)


def _at_least(default: Any, minimum: float, **metadata: Any) -> Any:
    return _any(default, minimum=minimum, **metadata)


def _share(default: Any) -> Any:
    return _any(default, minimum=0, maximum=1)


def _weight() -> Any:
    return _any(None, minimum=0, maximum=1e12)  # finite


def _backend() -> Any:
    return _any("auto", may_change=True)


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
    tuples of single frames (`fastseq.video.SegmentTuples`; keys segments, anchor, reversal).
    """

    # A folder that python -m training.prepare has prepared, or a list of several: [penn, my_clips].
    folder: Any = field(default="", metadata=NAMES | {"may_change": True})
    # With several folders, the share of each in the videos of an epoch: a number above 0 for each
    # folder, in their order, divided by their sum. null: an epoch has every video once.
    weights: list[float] | None = None
    action: Any = field(default=None, metadata=NAMES)  # only the videos of these actions; null: all
    where: WhereConfig = field(default_factory=WhereConfig)
    # The classes of the phases if labels.json has several sets, such as gym99; null: the first.
    class_set: str | None = _any(None, may_change=True)
    clips: str = _one_of("views", "views", "videos", "synchronised", "tuples")
    num_frames: int = _at_least(240, 2)  # T, frames per clip
    batch_size: int = _at_least(4, 1)  # items per batch, over all ranks; each has two clips
    # "random" and "even" draw frames within a temporal crop of the video (CARL, section 3.2); the
    # next four keys describe the crop, see fastseq.video.sample_views. The others draw from the
    # whole video, see fastseq.video.sample_clip.
    sampling: str = _one_of("random", *VIEW_SAMPLING, *CLIP_SAMPLING)
    crop_base: str = _one_of("clip", "clip", "video", "span")
    alpha: float = _at_least(1.5, 1)
    beta: float = _share(0.2)
    span: tuple[float, float] = (0.3, 1.0)
    positive_window: int = _at_least(5, 1)  # with sampling=anchors: largest distance in frames
    num_context: int = _at_least(1, 1)  # frames per embedding: the frame and earlier ones
    context_stride: int = _at_least(15, 1)  # distance between these, in frames
    segments: int = _at_least(3, 2)  # S; a tuple has one frame of each segment
    anchor: str = _one_of("ends", *ANCHORS)  # segments from which the frame-level anchor is drawn
    reversal: bool = False  # whether a shuffled tuple may be in exactly reversed order
    engine: str = _one_of("auto", *ENGINES)  # decoder; auto: the fastest that works
    # ram: decoded frames, in memory; features: features of a frozen backbone, on disk.
    cache: str = _one_of("none", "none", "ram", "features", may_change=True)
    # With cache=features: number of augmented versions of each video; 0: the video unaugmented.
    feature_draws: int = _at_least(0, 0)
    cache_side: int | None = _at_least(None, 1)  # shorter side of cached frames, in pixels
    # Decoding processes (PyAV) or threads (DALI); 0: this process (PyAV), all cores (DALI).
    workers: int = _at_least(4, 0, may_change=True)
    train_split: str = _one_of("train", *SPLITS)
    val_split: str = _one_of("val", *SPLITS)
    test_split: str = _one_of("test", *SPLITS)


@dataclass
class ModelConfig:
    """The encoder and the projection head (CARL, sections 3.3 and 3.4).

    ``encoder``: "fve", CARL's frame-level video encoder; "conv3d", that of TCC and LAV:
    convolutions over a frame and its context, no attention, no positions; "vclr": the backbone
    alone, with one head of ``projection_hidden`` and ``projection_size`` for each of VCLR's losses.
    """

    encoder: str = _one_of("fve", "fve", "conv3d", "vclr")
    # small_cnn, resnet18, 34, 50, 101, efficientnet_lite0; timm:NAME; package.module:function.
    backbone: str = "resnet50"
    backbone_to: str = "last"  # last stage that runs: last, stride8, stride16, or a stage's name
    pool: str = _one_of("max", *POOLS)  # pooling of the last map; grid: means of 4 x 4 fields
    # First stage that is trained: all, last, none, batch_norm, or a stage's name.
    train_from: str = "last"
    # Pre-trained weights: "package", a file, or a run directory of python -m training.train.
    weights: str | None = _any(None, may_change=True)
    # The network to use if the file holds several, such as teacher.
    weights_key: str | None = _any(None, may_change=True)
    # What to load: the backbone, or the whole model of a run.
    weights_parts: str = _one_of("backbone", "backbone", "all")
    random_frozen: bool = False  # whether a frozen part may have random weights
    centre: bool = False  # subtract the mean over the clip's real frames from features; fve only
    # Share of the backbone's features in the squared length of the embeddings that are evaluated,
    # saved and aligned; the trained part has the rest. The loss does not see them. fve only.
    backbone_share: float = _any(0.0, minimum=0, maximum=0.99, may_change=True)
    image_size: int = "${augmentation.size}"
    num_frames: int = "${data.num_frames}"
    num_context: int = "${data.num_context}"
    context_stride: int = "${data.context_stride}"
    conv3d_layers: int = _at_least(2, 1)
    conv3d_size: int = _at_least(512, 1)
    fc_layers: int = _at_least(2, 0)
    fc_size: int = _at_least(512, 1)
    fc_dropout: float = _share(0.1)
    layers: int = _at_least(3, 0)  # this key and the next five: fve only
    hidden_size: int = _at_least(256, 2)
    heads: int = _at_least(8, 1)
    ff_size: int = _at_least(1024, 1)
    dropout: float = _share(0.1)
    positions: str = _one_of("vaswani", "vaswani", "released", "none")
    embedding_size: int = _at_least(128, 1)
    projection_hidden: int = _at_least(128, 1)
    projection_size: int = _at_least(128, 1)


@dataclass
class SCLConfig:
    """The options of fastseq.scl_loss. The two clips must be views of one video."""

    weight: float | None = _weight()
    variance: float = 10.0
    temperature: float = 0.1
    normalize: bool = True
    objective: str = _one_of("kl", *OBJECTIVES)
    negatives: str = _one_of("cross", *NEGATIVES)
    reduction: str = _one_of("mean", *(name for name in REDUCTIONS if name != "none"))
    backend: str = _backend()


@dataclass
class NearestConfig:
    """CARL's contrastive baseline (A.4): the only positive is the frame nearest in time."""

    weight: float | None = _weight()
    temperature: float = _above(0.1, 0)
    reach: float = _at_least(45.0, 0)  # frames; SCL's Gaussian reaches 45 frames at variance 10


@dataclass
class SoftDTWConfig:
    """The options of fastseq.soft_dtw; the value is divided by the number of frames of a clip."""

    weight: float | None = _weight()
    gamma: float = 0.1
    cost: str = _one_of("sqeuclidean", *COSTS)
    bandwidth: int | None = _at_least(None, 0)
    divergence: bool = False
    normalize: bool = True  # normalise embeddings to unit length first
    backend: str = _backend()


@dataclass
class LAVConfig:
    """The options of fastseq.lav_loss."""

    weight: float | None = _weight()
    gamma: float = 0.1
    alpha: float = 0.5
    window: float = 10.0
    margin: float = 2.0
    form: str = _one_of("code", "code", "paper")
    normalize: bool = True  # normalise embeddings to unit length first, as LAV does
    backend: str = _backend()


@dataclass
class ContrastiveIDMConfig:
    """The options of fastseq.contrastive_idm on both clips.

    The sum is divided by the number of frames of a clip, so ``soft_dtw`` + 0.5 ``contrastive_idm``
    is ``lav``, and the other forms can replace it (LAV, Table 1). ``form`` is the function's
    ``kind``. With weights=code, times and window are shares of the video, as in LAV's code.
    """

    weight: float | None = _weight()
    window: float = _at_least(10.0, 0)
    margin: float = 2.0
    form: str = _one_of("contrastive", *KINDS)
    weights: str = _one_of("code", *WEIGHTS)
    distance: str = _one_of("sqeuclidean", *DISTANCES)
    normalize: bool = True  # normalise embeddings to unit length first, as LAV does
    backend: str = _backend()


@dataclass
class TCCConfig:
    """The options of fastseq.tcc_loss.

    ``pairs``: "given", the two clips of each item in both directions; "all", all ordered pairs of
    the batch's clips that show the same action, as in TCC's released code. Both are the same at
    data.batch_size=1.
    """

    weight: float | None = _weight()
    pairs: str = _one_of("given", "given", "all")
    loss_type: str = _one_of("regression_mse_var", *LOSS_TYPES)
    similarity: str = _one_of("l2", *SIMILARITIES)
    temperature: float = 0.1
    variance_lambda: float = 0.001
    label_smoothing: float = 0.1
    huber_delta: float = 0.1
    normalize_indices: bool = True
    normalize: bool = False  # normalise embeddings to unit length first; TCC does not
    backend: str = _backend()


@dataclass
class TCNConfig:
    """The options of fastseq.tcn_loss; needs data.sampling=anchors."""

    weight: float | None = _weight()
    reg_lambda: float = 0.002
    normalize: bool = False


@dataclass
class VCLRConfig:
    """``weight`` times the weighted sum of VCLR's four losses; a loss with weight 0 is left out.

    Needs data.clips=tuples and model.encoder=vclr. fastseq.vclr_loss describes ``form`` and
    ``temperature``.
    """

    weight: float | None = _weight()
    inter: float = _at_least(1.0, 0)
    intra: float = _at_least(1.0, 0)
    video: float = _at_least(1.0, 0)  # the video-level loss, between tuples
    order: float = _at_least(1.0, 0)
    temperature: float = _above(0.1, 0)
    form: str = _one_of("code", *VCLR_FORMS)
    queue_size: int = _at_least(131072, 1)  # keys in each of the two queues
    momentum: float = _share(0.999)  # of the encoder that computes the keys
    backend: str = _backend()


@dataclass
class LossConfig:
    """The minimised sum of weight times loss. If no weight is set, SCL has weight 1."""

    scl: SCLConfig = field(default_factory=SCLConfig)
    nearest: NearestConfig = field(default_factory=NearestConfig)
    soft_dtw: SoftDTWConfig = field(default_factory=SoftDTWConfig)
    lav: LAVConfig = field(default_factory=LAVConfig)
    contrastive_idm: ContrastiveIDMConfig = field(default_factory=ContrastiveIDMConfig)
    tcc: TCCConfig = field(default_factory=TCCConfig)
    tcn: TCNConfig = field(default_factory=TCNConfig)
    vclr: VCLRConfig = field(default_factory=VCLRConfig)


@dataclass
class OptimConfig:
    """The optimizer, with coupled weight decay.

    The learning rate rises from lr / 100 to lr during the warm-up, then follows half a cosine to
    ``min_lr``.
    """

    name: str = _one_of("adam", "adam", "sgd")
    lr: float = _at_least(1e-4, 0)
    weight_decay: float = _at_least(1e-5, 0)
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    momentum: float = _share(0.9)  # of SGD
    schedule: str = _one_of("cosine", "cosine", "constant")
    min_lr: float = _at_least(0.0, 0)
    warmup_steps: int = _at_least(0, 0)  # set steps or epochs
    warmup_epochs: float = _at_least(0.0, 0)
    grad_clip: float | None = _above(10.0, 0)  # largest gradient norm; null: no clipping


@dataclass
class TrainConfig:
    """Duration and device of the training, and what it writes."""

    run_dir: str = _any("", may_change=True)  # default: runs/<name of the recipe>
    steps: int | None = _at_least(None, 1)  # set steps or epochs
    epochs: int | None = _at_least(None, 1)
    # Stops the run after this time and ends the cosine there: the result then depends on the
    # machine's speed.
    max_minutes: float | None = _above(None, 0, may_change=True)
    seed: int = _at_least(0, 0)
    accumulate: int = _at_least(1, 1)  # batches of data.batch_size per step of the optimizer
    device: str = _any("auto", may_change=True)  # auto: cuda if available
    precision: str = _one_of("auto", "auto", "fp32", "bf16")  # auto: bf16 if CUDA supports it
    # Frames per backbone call; 0: all at once. Memory grows with this number, not with the length
    # of the clips; batch norms of the backbone compute their statistics over these frames. null:
    # 80, as in CARL's code, but 8 on a CPU if no batch norm computes statistics (twice as fast).
    chunk_frames: int | None = _at_least(None, 0)
    # Keep only the inputs of the backbone's trained part, the fc block and the Transformer's
    # branches for backward, and recompute these parts: less memory, the same gradients.
    checkpointing: bool = _any(True, may_change=True)
    # torch.compile of the backbone; the first steps take minutes.
    compile: bool = _any(False, may_change=True)
    log_every: int = _at_least(20, 1, may_change=True)  # steps
    checkpoint_every: int = _at_least(1000, 1, may_change=True)  # steps
    # Steps between evaluations on the val videos, or on the test videos where there are none, which
    # the report plots; null: no evaluation.
    evaluate_every: int | None = _at_least(None, 1, may_change=True)
    keep_checkpoints: int = _at_least(2, 1, may_change=True)
    # Consecutive steps without a finite loss after which the run stops.
    max_nonfinite: int = _at_least(20, 1, may_change=True)
    # Bitwise identical results from run to run on a GPU; slower.
    deterministic: bool = _any(False, may_change=True)


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


def loss_terms(cfg: Any) -> list[tuple[str, float, dict[str, Any]]]:
    """(name, weight, options) of the losses in a ``loss`` section whose weight is above 0."""
    if is_dataclass(cfg):
        sections = asdict(cfg)
    else:
        from omegaconf import OmegaConf

        sections = OmegaConf.to_container(cfg, resolve=True)
    weights = {name: section.pop("weight") for name, section in sections.items()}
    if all(weight is None for weight in weights.values()):
        weights["scl"] = 1.0
    return [(name, weights[name], sections[name]) for name in sections if weights[name]]
