"""mmaction2's ResNet, ResNetTSM and ResNet3d, and timm's names, from their published structure."""

import torch
from torch import nn

COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ConvModule(nn.Module):
    """mmcv's: a convolution without bias, a norm and, unless told otherwise, a ReLU."""

    def __init__(self, conv, relu=True):
        super().__init__()
        self.conv = conv
        self.bn = (nn.BatchNorm3d if isinstance(conv, nn.Conv3d) else nn.BatchNorm2d)(
            conv.out_channels
        )
        self.relu = relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class Shift(nn.Module):
    """mmaction2's TemporalShift: frames are neighbours in the batch."""

    def __init__(self, net, segments, div=8):
        super().__init__()
        self.net, self.segments, self.div = net, segments, div

    def forward(self, x):
        x = x.unflatten(0, (-1, self.segments))
        fold = x.shape[2] // self.div
        moved = torch.zeros_like(x)
        moved[:, :-1, :fold] = x[:, 1:, :fold]
        moved[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        moved[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return self.net(moved.flatten(0, 1))


class Block(nn.Module):
    def __init__(self, layers, downsample):
        super().__init__()
        for number, layer in enumerate(layers, 1):
            setattr(self, f"conv{number}", layer)
        self.count, self.downsample = len(layers), downsample

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.count + 1):
            x = getattr(self, f"conv{number}")(x)
        return (x + shortcut).relu()


class MMResNet(nn.Module):
    """Images or clips to maps.

    Clips: ResNet3d with conv1_kernel=(3, 7, 7), temporal_strides=(1, 2, 2, 2),
    inflate_style="3x3x3" and without pools.
    """

    def __init__(self, depth, widths, *, clips=False, segments=0):
        super().__init__()
        self.clips = clips
        kind = nn.Conv3d if clips else nn.Conv2d

        def conv(a, b, kernel, stride=1, relu=True):
            return ConvModule(kind(a, b, kernel, stride, kernel // 2, bias=False), relu)

        a = widths[0]
        stem = {"kernel_size": (3, 7, 7), "stride": (1, 2, 2), "padding": (1, 3, 3)}
        stem = stem if clips else {"kernel_size": 7, "stride": 2, "padding": 3}
        self.conv1 = ConvModule(kind(3, a, **stem, bias=False))
        for stage, (width, count) in enumerate(zip(widths, COUNTS[depth], strict=True)):
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                if depth < 50:
                    b = width
                    layers = [conv(a, b, 3, stride), conv(b, b, 3, relu=False)]
                else:
                    b = 4 * width
                    layers = [conv(a, width, 1), conv(width, width, 3, stride)]
                    layers.append(conv(width, b, 1, relu=False))
                shortcut = None if stride == 1 and a == b else conv(a, b, 1, stride, relu=False)
                if segments and not (COUNTS[depth][2] >= 23 and index % 2):
                    layers[0].conv = Shift(layers[0].conv, segments)
                blocks.append(Block(layers, shortcut))
                a = b
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.conv1(x)
        if not self.clips:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x


class Recognizer(nn.Module):
    """mmaction2's Recognizer2D and 3D: a backbone and a head with a linear classifier."""

    def __init__(self, backbone, features, classes):
        super().__init__()
        self.backbone = backbone
        self.cls_head = nn.Module()
        self.cls_head.fc_cls = nn.Linear(features, classes)


def video_resnet(depth, widths):
    """Name -> shape of torchvision's VideoResNet of r3d_18 (18) and its Bottleneck (50)."""
    state = {"stem.0.weight": (widths[0], 3, 3, 7, 7)} | _norm("stem.1", widths[0])
    a = widths[0]
    for stage, (width, count) in enumerate(zip(widths, COUNTS[depth], strict=True), 1):
        for index in range(count):
            block, b = f"layer{stage}.{index}", width * (1 if depth < 50 else 4)
            sizes = [(a, width, 3), (width, b, 3)]
            if depth >= 50:
                sizes = [(a, width, 1), (width, width, 3), (width, b, 1)]
            for number, (before, after, kernel) in enumerate(sizes, 1):
                state[f"{block}.conv{number}.0.weight"] = (after, before, *[kernel] * 3)
                state |= _norm(f"{block}.conv{number}.1", after)
            if not index and (stage > 1 or a != b):
                state[f"{block}.downsample.0.weight"] = (b, a, 1, 1, 1)
                state |= _norm(f"{block}.downsample.1", b)
            a = b
    return state


def timm_lite0():
    """Name -> shape of timm's tf_efficientnet_lite0, without its classifier."""
    state = {"conv_stem.weight": (32, 3, 3, 3)} | _norm("bn1", 32)
    # Expansion, channels, blocks and kernel of each stage of EfficientNet-B0.
    stages = [(1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3), (6, 112, 3, 5)]
    stages += [(6, 192, 4, 5), (6, 320, 1, 3)]
    a = 32
    for stage, (expand, b, count, kernel) in enumerate(stages):
        for index in range(count):
            block, inside = f"blocks.{stage}.{index}", a * expand
            layers = [("conv_dw", (inside, 1, kernel, kernel))]
            if expand > 1:
                layers = [("conv_pw", (inside, a, 1, 1)), *layers]
            layers.append(("conv_pwl" if expand > 1 else "conv_pw", (b, inside, 1, 1)))
            for number, (name, shape) in enumerate(layers, 1):
                state[f"{block}.{name}.weight"] = shape
                state |= _norm(f"{block}.bn{number}", shape[0])
            a = b
    return state | {"conv_head.weight": (1280, a, 1, 1)} | _norm("bn2", 1280)


def resnet(depth, widths):
    """Name -> shape of torchvision's and timm's ResNet, without fc."""
    state = {"conv1.weight": (widths[0], 3, 7, 7)} | _norm("bn1", widths[0])
    a = widths[0]
    for stage, (width, count) in enumerate(zip(widths, COUNTS[depth], strict=True), 1):
        for index in range(count):
            block, b = f"layer{stage}.{index}", width * (1 if depth < 50 else 4)
            sizes = [(a, width, 3), (width, b, 3)]
            if depth >= 50:
                sizes = [(a, width, 1), (width, width, 3), (width, b, 1)]
            for number, (before, after, kernel) in enumerate(sizes, 1):
                state[f"{block}.conv{number}.weight"] = (after, before, kernel, kernel)
                state |= _norm(f"{block}.bn{number}", after)
            if not index and (stage > 1 or a != b):
                state[f"{block}.downsample.0.weight"] = (b, a, 1, 1)
                state |= _norm(f"{block}.downsample.1", b)
            a = b
    return state


def _norm(name, size):
    entries = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{one}": (size,) for one in entries} | {f"{name}.num_batches_tracked": ()}
