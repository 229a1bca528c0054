"""SeCo's model: VCLR's without the video-level head, and another classifier of the order."""

from torch import nn

from training.models.vclr import VCLREncoder, VCLRModel


class SeCoModel(VCLRModel):
    """`VCLRModel` whose ``order`` classifies whether a frame is before or after two others.

    Args:
        encoder: the online encoder; its heads determine which losses are used.
        segments: 2, the halves of a video.
        queue_size: number of keys of earlier steps in the queue of "inter".
        momentum: m of the moving average.
    """

    def __init__(
        self, encoder: VCLREncoder, *, segments: int, queue_size: int, momentum: float
    ) -> None:
        super().__init__(encoder, segments=segments, queue_size=queue_size, momentum=momentum)
        if self.order is not None:
            self.order = nn.Linear(3 * encoder.heads["order"][-1].out_features, 2)
