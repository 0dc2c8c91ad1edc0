"""MDLM in small, for a CPU: bytes, 128 at a time, in a Transformer of 0.8 million parameters.

Reproduces:  nothing published; that the command works from end to end on bytes of your own.
"""

from vdiff.training import Config

CONFIG = Config(
    network={
        "name": "Transformer", "vocabulary": 256, "length": 128, "width": 128, "depth": 4,
        "heads": 4,
    },
    process={"name": "Masked", "vocabulary": 256},
    schedule={"name": "LogLinear"},
    data="tokens/bytes.npy",
    shape=[128],
    steps=2000,
    batch=32,
    lr=1e-3,
    warmup=100,
    ema=[0.99],
)  # fmt: skip
