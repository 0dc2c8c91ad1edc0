"""The text of a user's FILE.py with a network, for the tests of the command line."""


def convolution(channels: int) -> str:
    """Net, one convolution of images with so many channels."""
    return f"""
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d({channels}, {channels}, 3, padding=1)

    def forward(self, z, logsnr):
        return self.layer(z)
"""
