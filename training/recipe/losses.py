"""The keys of a recipe's ``loss`` section: one class for each loss."""

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from fastseq.ops.contrastive_idm.options import DISTANCES, KINDS, WEIGHTS
from fastseq.ops.scl.options import NEGATIVES, OBJECTIVES, REDUCTIONS, TARGETS
from fastseq.ops.sinkhorn.vava import FORMS as VAVA_FORMS
from fastseq.ops.soft_dtw.options import ALL_COSTS, SOFTMINS
from fastseq.ops.tcc.options import LOSS_TYPES, SIMILARITIES
from fastseq.ops.vclr.op import FORMS as VCLR_FORMS
from training.recipe.fields import (
    above,
    anything,
    at_least,
    backend,
    loss_weight,
    one_of,
    part,
    share,
)


@dataclass
class SCLConfig:
    """The options of fastseq.scl_loss. The two clips must be views of one video."""

    weight: float | None = loss_weight()
    variance: float = 10.0
    temperature: float = 0.1
    normalize: bool = True
    objective: str = one_of("kl", *OBJECTIVES)
    negatives: str = one_of("cross", *NEGATIVES)
    reduction: str = one_of("mean", *(name for name in REDUCTIONS if name != "none"))
    target: str = one_of("gauss", *TARGETS)
    backend: str = backend()


@dataclass
class NearestConfig:
    """CARL's contrastive baseline (A.4): the only positive is the frame nearest in time."""

    weight: float | None = loss_weight()
    temperature: float = above(0.1, 0)
    reach: float = at_least(45.0, 0)  # frames; SCL's Gaussian reaches 45 frames at variance 10


@dataclass
class SoftDTWConfig:
    """The options of fastseq.soft_dtw; the value is divided by the number of frames of a clip."""

    weight: float | None = loss_weight()
    gamma: float = 0.1
    cost: str = one_of("sqeuclidean", *ALL_COSTS)
    temperature: float = above(0.1, 0)  # of cost=softmax
    softmin: str = one_of("logsumexp", *SOFTMINS)
    bandwidth: int | None = at_least(None, 0)
    divergence: bool = False
    normalize: bool = True  # normalise embeddings to unit length first
    backend: str = backend()


@dataclass
class LAVConfig:
    """The options of fastseq.lav_loss."""

    weight: float | None = loss_weight()
    gamma: float = 0.1
    alpha: float = 0.5
    window: float = 10.0
    margin: float = 2.0
    form: str = one_of("code", "code", "paper")
    normalize: bool = True  # normalise embeddings to unit length first, as LAV does
    backend: str = backend()


@dataclass
class ContrastiveIDMConfig:
    """The options of fastseq.contrastive_idm on both clips.

    The sum is divided by the number of frames of a clip, so ``soft_dtw`` + 0.5 ``contrastive_idm``
    is ``lav``, and the other forms can replace it (LAV, Table 1). ``form`` is the function's
    ``kind``. With weights=code, times and window are shares of the video, as in LAV's code.
    """

    weight: float | None = loss_weight()
    window: float = at_least(10.0, 0)
    margin: float = 2.0
    form: str = one_of("contrastive", *KINDS)
    weights: str = one_of("code", *WEIGHTS)
    distance: str = one_of("sqeuclidean", *DISTANCES)
    normalize: bool = True  # normalise embeddings to unit length first, as LAV does
    backend: str = backend()


@dataclass
class GTAConfig:
    """The options of fastseq.gta_loss."""

    weight: float | None = loss_weight()
    gamma: float = above(0.1, 0)
    temperature: float = above(0.1, 0)
    softmin: str = one_of("prob", *SOFTMINS)
    consistency: bool = True
    label_smoothing: float = part(0.1)
    backend: str = backend()


@dataclass
class AE2Config:
    """The options of fastseq.ae2_loss, without AE2's subsets of frames by object boxes."""

    weight: float | None = loss_weight()
    gamma: float = above(0.1, 0)
    temperature: float = above(0.1, 0)
    softmin: str = one_of("prob", *SOFTMINS)
    margin: float = at_least(0.0, 0)
    ratio: float = at_least(1.0, 0)
    scale: float = above(0.01, 0)
    backend: str = backend()


@dataclass
class VAVAConfig:
    """The options of fastseq.vava_loss; phi is constant here."""

    weight: float | None = loss_weight()
    phi: float = share(0.999)
    epsilon: float = above(0.1, 0)
    iterations: int = anything(21, minimum=1, maximum=10_000)
    structure: float = at_least(1.0, 0)
    prior_width: float = above(2.0, 0)
    virtual_cost: float = at_least(0.5, 0)
    virtual_distance: float = at_least(5.0, 0)
    window: float = at_least(15.0, 0)
    margin: float = above(2.0, 0)
    intra: float = at_least(0.5, 0)
    inter: float = at_least(1e-4, 0)
    temperature: float = above(0.5, 0)
    form: str = one_of("paper", *VAVA_FORMS)
    normalize: bool = True  # normalise embeddings to unit length first
    backend: str = backend()


@dataclass
class DropDTWConfig:
    """fastseq.drop_dtw of both clips, each as the one whose frames may be dropped.

    ``keep``: share of all scores of a pair that are as good as the choice to drop a frame or
    better. Costs are -log softmax of cosines, divided by ``temperature``, over the other clip and
    that choice; the loss is divided by the frames of a clip.
    """

    weight: float | None = loss_weight()
    gamma: float = above(0.1, 0)
    temperature: float = above(0.1, 0)
    keep: float = anything(0.3, above=0, maximum=1)
    softmin: str = one_of("prob", "logsumexp", "prob")
    contiguous: bool = True
    backend: str = backend()


@dataclass
class LRPropConfig:
    """The options of fastseq.lrprop_loss. LRProp adds a regularised Soft-DTW loss: ``loss.lav``."""

    weight: float | None = loss_weight()
    variance: float = above(10.0, 0)
    temperature: float = above(0.1, 0)
    normalize: bool = True
    bandwidth: int | None = at_least(None, 0)
    backend: str = backend()


@dataclass
class TCCConfig:
    """The options of fastseq.tcc_loss.

    ``pairs``: "given", the two clips of each item in both directions; "all", all ordered pairs of
    the batch's clips that show the same action, as in TCC's released code. Both are the same at
    data.batch_size=1.
    """

    weight: float | None = loss_weight()
    pairs: str = one_of("given", "given", "all")
    loss_type: str = one_of("regression_mse_var", *LOSS_TYPES)
    similarity: str = one_of("l2", *SIMILARITIES)
    temperature: float = 0.1
    variance_lambda: float = 0.001
    label_smoothing: float = 0.1
    huber_delta: float = 0.1
    normalize_indices: bool = True
    normalize: bool = False  # normalise embeddings to unit length first; TCC does not
    backend: str = backend()


@dataclass
class TCNConfig:
    """The options of fastseq.tcn_loss; needs data.sampling=anchors."""

    weight: float | None = loss_weight()
    reg_lambda: float = 0.002
    normalize: bool = False


@dataclass
class VCLRConfig:
    """``weight`` times the weighted sum of VCLR's four losses; a loss with weight 0 is left out.

    Needs data.clips=tuples and model.encoder=vclr. fastseq.vclr_loss describes ``form`` and
    ``temperature``.
    """

    weight: float | None = loss_weight()
    inter: float = at_least(1.0, 0)
    intra: float = at_least(1.0, 0)
    video: float = at_least(1.0, 0)  # the video-level loss, between tuples
    order: float = at_least(1.0, 0)
    temperature: float = above(0.1, 0)
    form: str = one_of("code", *VCLR_FORMS)
    queue_size: int = at_least(131072, 1)  # keys in each of the two queues
    momentum: float = share(0.999)  # of the encoder that computes the keys
    backend: str = backend()


@dataclass
class ClassificationConfig:
    """Cross-entropy of a linear classifier of the labelled frames' classes (supervised training).

    Classes are the phases of the training videos' actions, one action after the other. The default
    dropout is that of CARL_code's classifier. ``label_share``: labels of the first int(share * n)
    labelled videos of each action are used, at least one, as by ``evaluate --fractions``.
    ``label_videos``: those of the first so many, instead of a share. If this is the only loss, no
    other video is read.
    """

    weight: float | None = loss_weight()
    dropout: float = part(0.1)
    label_smoothing: float = part(0.0)
    label_share: float = anything(1.0, above=0, maximum=1)
    label_videos: int | None = at_least(None, 1)  # of each action; null: label_share
    # Number of classes; null: counted in the labels. A run's config.yaml has the number.
    classes: int | None = at_least(None, 1, may_change=True)


@dataclass
class ActionConfig:
    """Cross-entropy of a linear classifier of the videos' actions (TSN, TSM, 3-D networks).

    Needs data.clips=segments and model.encoder=tsn. Scores are averaged over the clips of a video.
    """

    weight: float | None = loss_weight()
    dropout: float = part(0.5)
    label_smoothing: float = part(0.0)
    # Number of classes; null: counted in the labels. A run's config.yaml has the number.
    classes: int | None = at_least(None, 1, may_change=True)


@dataclass
class SaLConfig:
    """Shuffle and Learn: whether three frames of a clip are in order, as released with TCC."""

    weight: float | None = loss_weight()
    triples: int = at_least(8, 1)  # of each clip
    # Share of the triples that are shuffled.
    shuffle_share: float = anything(0.75, above=0, maximum=0.99)


@dataclass
class SpeedConfig:
    """SpeedNet: whether a clip is at normal speed or fast; needs data.sampling=speeds."""

    weight: float | None = loss_weight()


@dataclass
class SeCoConfig:
    """``weight`` times the weighted sum of SeCo's three losses; one with weight 0 is left out.

    Needs data.clips=tuples with data.segments=2, and model.encoder=vclr.
    """

    weight: float | None = loss_weight()
    inter: float = at_least(1.0, 0)
    intra: float = at_least(1.0, 0)
    order: float = at_least(1.0, 0)
    temperature: float = above(0.1, 0)
    form: str = one_of("code", *VCLR_FORMS)  # of intra, see fastseq.intra_nce
    queue_size: int = at_least(131072, 1)  # keys in the queue
    momentum: float = share(0.999)  # of the encoder that computes the keys
    backend: str = backend()


@dataclass
class DPCConfig:
    """DPC: the maps of the last blocks of a video, predicted from those of the first ones.

    Needs data.clips=blocks and model.encoder=dpc. Negatives: the other places, blocks and videos of
    the batch.
    """

    weight: float | None = loss_weight()
    predict: int = at_least(3, 1)  # blocks that are predicted, of the data.segments blocks
    dropout: float = part(0.1)  # of the recurrent network's state


@dataclass
class LossConfig:
    """The minimised sum of weight times loss. If no weight is set, SCL has weight 1."""

    scl: SCLConfig = field(default_factory=SCLConfig)
    nearest: NearestConfig = field(default_factory=NearestConfig)
    soft_dtw: SoftDTWConfig = field(default_factory=SoftDTWConfig)
    lav: LAVConfig = field(default_factory=LAVConfig)
    contrastive_idm: ContrastiveIDMConfig = field(default_factory=ContrastiveIDMConfig)
    gta: GTAConfig = field(default_factory=GTAConfig)
    ae2: AE2Config = field(default_factory=AE2Config)
    vava: VAVAConfig = field(default_factory=VAVAConfig)
    drop_dtw: DropDTWConfig = field(default_factory=DropDTWConfig)
    lrprop: LRPropConfig = field(default_factory=LRPropConfig)
    tcc: TCCConfig = field(default_factory=TCCConfig)
    tcn: TCNConfig = field(default_factory=TCNConfig)
    vclr: VCLRConfig = field(default_factory=VCLRConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    action: ActionConfig = field(default_factory=ActionConfig)
    sal: SaLConfig = field(default_factory=SaLConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    seco: SeCoConfig = field(default_factory=SeCoConfig)
    dpc: DPCConfig = field(default_factory=DPCConfig)


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
