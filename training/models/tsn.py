"""Temporal segment networks: a backbone and a linear classifier of whole videos."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.encoder import VideoEncoder
from training.models.heads import apply_head
from training.support.command import UserError

if TYPE_CHECKING:
    from training.recipe.schema import Config

INIT_STD = 0.01  # of the classifier's weights (mmaction2: TSNHead)


class TSNModel(VideoEncoder):
    """A backbone and a linear classifier of its features (TSN, https://arxiv.org/abs/1608.00859).

    The scores of a video are the means of the scores of its clips (TSN, section 3.2: consensus by
    averaging). A clip is a number of frames for a backbone of clips; for a backbone of images the
    features of its frames are averaged. With `ShiftedResNet` the clips of all segments of a video,
    of one frame each, form a single clip.

    Args:
        classes: C, number of classes.
        dropout: share of the features of a clip that are dropped before the classifier.
        segments: S, if a clip consists of one frame of each of S segments (TSM); None otherwise.

    Attributes:
        heads: "action": dropout, then Linear(F -> C).
    """

    pooled = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        classes: int,
        dropout: float,
        segments: int | None,
        chunk_frames: int | None,
        checkpointing: bool,
    ) -> None:
        super().__init__(backbone, chunk_frames, checkpointing)
        linear = nn.Linear(backbone.out_features, classes)
        nn.init.normal_(linear.weight, std=INIT_STD)
        nn.init.zeros_(linear.bias)
        self.heads["action"] = nn.Sequential(nn.Dropout(dropout), linear)
        self.segments = segments

    @property
    def classes(self) -> int:
        """C, number of classes."""
        return self.heads["action"][-1].out_features

    def clips_of(self, segments: Tensor) -> Tensor:
        """The clips of a batch of `fastseq.video.SegmentClips`, as the backbone sees them.

        (N, S, L, 3, H, W) to the same, or to (N, L, S, 3, H, W) if a clip has a frame of each
        segment.
        """
        return segments.transpose(1, 2) if self.segments else segments

    def classify(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N, C) of videos and features (N, K, F) of their clips.

        Args:
            clips: (N, K, L, 3, H, W), uint8 RGB in 0 to 255, or floating point in 0 to 1.
        """
        features = self.clip_features(clips)
        return apply_head(self.heads["action"], features).mean(1), features

    def clip_scores(self, clips: Tensor) -> Tensor:
        """Scores (N, K, C) of clips (N, K, L, 3, H, W)."""
        return apply_head(self.heads["action"], self.clip_features(clips))

    def whole_videos_by(self, clip_frames: int, clip_stride: int) -> None:
        """Set the clip around a frame of a whole video: with TSM it has a frame per segment."""
        super().whole_videos_by(self.segments or clip_frames, clip_stride)

    def encode(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames (N, T, 3, H, W) to features (N, T, F), see `VideoEncoder.features`."""
        return self.features(frames)

    def forward(self, frames: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.encode(frames, valid)


def build_tsn(config: "Config", backbone: Backbone) -> TSNModel:
    """The model of a recipe with ``model.encoder=tsn``; UserError if the classes are unknown."""
    options = config.loss.action
    if options.classes is None:
        raise UserError(
            "loss.action.classes is null, so the classifier's size is unknown: expected the number "
            "of classes. python -m training.train counts them in the labels; elsewhere set "
            "loss.action.classes"
        )
    return TSNModel(
        backbone,
        classes=options.classes,
        dropout=options.dropout,
        segments=config.data.segments if config.model.shift else None,
        chunk_frames=config.train.chunk_frames,
        checkpointing=config.train.checkpointing,
    )
