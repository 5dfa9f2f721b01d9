"""A convolution with its normalisation: what Conv4 and ResNet-12 are built of."""

from torch import nn

NORMALISATIONS = ("batch", "group", "none")


def convolution(
    inputs: int, outputs: int, *, normalisation: str, kernel: int = 3, groups: int = 8
) -> tuple[nn.Module, ...]:
    """A convolution that keeps height and width, and its normalisation, if any.

    batch: statistics of the batch at hand, none tracked, so the forward pass is a function of
    parameters and input. group: over ``groups`` groups of channels of each image (Wu, He 2018);
    1 takes all channels together, as many as channels is instance normalisation. A convolution
    that is normalised has no bias: its mean over the normalised set would be cancelled and leave
    null directions in every Hessian.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation={normalisation!r} is not one of {', '.join(NORMALISATIONS)}")
    if normalisation == "group" and (groups < 1 or outputs % groups):
        raise ValueError(f"groups={groups} does not divide {outputs} channels; choose a divisor, or another width")
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=normalisation == "none")
    if normalisation == "batch":
        return conv, nn.BatchNorm2d(outputs, track_running_stats=False)
    return (conv, nn.GroupNorm(groups, outputs)) if normalisation == "group" else (conv,)


def refuse_small_images(input_shape: tuple[int, ...], *, poolings: int) -> None:
    """Refuse images of which halving this many times leaves nothing."""
    least = 2**poolings
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={tuple(input_shape)} is not an image's (channels, height, width)")
    height, width = input_shape[1:]
    if min(height, width) < least:
        raise ValueError(f"images of {height}x{width} vanish in four poolings; use at least {least}x{least}")
