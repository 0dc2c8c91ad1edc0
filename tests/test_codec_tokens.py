"""The codec of tokens: they come back byte for byte, and a file is as long as the bound of its
chain, or in any order as that in continuous time."""

import math
import random
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
import torch
from test_codec_container import damaged
from tokens import Chain

from vdiff import Denoiser, elbo
from vdiff.codec import compress, compression, decompress, decompress_batches
from vdiff.codec import decompression as module
from vdiff.codec import tokens as code
from vdiff.codec.code import Rows
from vdiff.codec.container import Container, Facts, Writer
from vdiff.codec.stack import Stack
from vdiff.decoder import Categorical
from vdiff.denoiser import logsnr_time
from vdiff.discrete import AnyOrder, Hybrid, Masked, TokenDenoiser, Uniform
from vdiff.errors import InvalidArgument, InvalidValue
from vdiff.parameterization import V
from vdiff.sampling import Tempered
from vdiff.schedule import Cosine, LogLinear

pytest.importorskip("constriction")
BITS = math.log(2)


class Net(torch.nn.Module):
    """A small untrained network over tokens of any shape, with or without λ."""

    def __init__(self, vocabulary, scale=2.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(vocabulary + 1, 16)
        self.out = torch.nn.Linear(16, vocabulary)
        self.scale = scale

    def forward(self, z, logsnr=None, shift=None):
        hidden = self.embed(z.flatten(1))
        hidden = hidden + hidden.mean(1, keepdim=True)
        if logsnr is not None:
            hidden = hidden * (1 + 0.05 * logsnr.view(-1, 1, 1).float())
        if shift is not None:
            hidden = hidden + shift.view(-1, 1, 1)
        return self.scale * self.out(hidden).view(*z.shape, -1)


def rand(shape, vocabulary, mask=None, seed=0):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, vocabulary, shape))
    return x if mask is None else torch.where(x == mask, (mask + 1) % vocabulary, x)


def model_of(vocabulary, mask=None, timed=False, process=Masked, **net):
    time = logsnr_time if timed else None
    return TokenDenoiser(Net(vocabulary, **net), process(vocabulary, mask), time=time)


def round_trip(tmp_path, model, x, **options):
    path = tmp_path / "f"
    written = compress(model, x, path, **options)
    back = decompress(model, path, **{k: v for k, v in options.items() if k == "schedule"})
    assert back.dtype == x.dtype
    assert torch.equal(back, x)
    assert written.bytes == path.stat().st_size
    return written


@pytest.mark.parametrize(("vocabulary", "mask"), [(2, None), (256, None), (256, 3), (4096, None)])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 4, 2)])
@pytest.mark.parametrize(("steps", "timed"), [(None, False), (4, True), (30, False)])
def test_tokens_come_back(tmp_path, vocabulary, mask, shape, steps, timed):
    x = rand(shape, vocabulary, mask)
    model = model_of(vocabulary, mask, timed)
    written = round_trip(tmp_path, model, x, steps=steps, batch=3)
    assert written.bits_per_token == written.bits_per_dim
    assert written.bits == pytest.approx(float(written.log_ratio.sum()) / BITS, abs=2)
    assert str(written).split("\n")[0].endswith("bits/token")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_dtypes_come_back(tmp_path, dtype):
    round_trip(tmp_path, model_of(250), rand((5, 6), 250).to(dtype))


@pytest.mark.parametrize("value", [0, 299])
def test_constant_tokens_come_back(tmp_path, value):
    round_trip(tmp_path, model_of(300), torch.full((4, 6), value))


def test_one_real_value_takes_no_bits(tmp_path):
    written = round_trip(tmp_path, model_of(2, mask=1), torch.zeros(40, 30, dtype=torch.long))
    assert abs(written.bits) <= 1


def test_tokens_that_the_model_excludes_come_back(tmp_path):
    """Of probability 0, in the first and in another block of values."""
    model = model_of(600, scale=1e6)
    written = round_trip(tmp_path, model, rand((4, 5), 600))
    assert 24 < written.bits_per_token < 60


@pytest.mark.parametrize("schedule", [Cosine(3.0, -2.0), LogLinear(1.0, -1.0)])
def test_tokens_beyond_the_ends_come_back(tmp_path, schedule):
    model = model_of(300, timed=True)
    round_trip(tmp_path, model, rand((9, 11), 300), steps=3, schedule=schedule)


def test_any_order_is_its_own_process(tmp_path):
    x, files = rand((5, 7), 256), []
    for process in (Masked, AnyOrder):
        round_trip(tmp_path, model_of(256, process=process), x)
        files.append(Container.open(tmp_path / "f"))
    assert files[0].facts.steps == files[1].facts.steps == 7
    words = [np.array(file.read(file.words, file.words)) for file in files]
    assert np.array_equal(*words)


def test_a_step_codes_what_loses_its_mask():
    """The masks of both codes have the distributions of their chains."""
    level, rows = torch.tensor([2.0, 0.0, -1.0]).double(), Rows((4000, 3), {})
    step = code.MaskCode(model_of(9), Masked(9), level, 3, 5, torch.device("cpu")).step_of(rows)
    for j, hidden in enumerate(torch.sigmoid(-level)):
        assert np.mean(step <= j) == pytest.approx(hidden.item(), abs=5 / math.sqrt(4 * 12_000))
    assert np.array_equal(np.unique(step), [0, 1, 2, 3])
    order = code.MaskCode(model_of(9), Masked(9), None, 3, 5, torch.device("cpu"))
    ranks = order.step_of(rows).reshape(4000, 3)
    assert np.array_equal(np.sort(ranks, 1), np.tile([1, 2, 3], (4000, 1)))
    _, counts = np.unique(ranks, axis=0, return_counts=True)
    assert np.abs(counts / 4000 - 1 / 6).max() < 5 * math.sqrt(5 / 36 / 4000)
    assert len(counts) == 6
    part = order.step_of(Rows((10, 3), {}, 50))  # the same in every batch
    assert np.array_equal(part, ranks[50:60].ravel())


def draw(count, length, seed=0, keep=0.9):
    """Texts of the binary Markov chain."""
    rng = np.random.default_rng(seed)
    turns = (rng.random((count, length)) > keep).astype(int)
    turns[:, 0] = rng.integers(0, 2, count)
    return torch.from_numpy(np.cumsum(turns, 1) % 2)


@pytest.mark.parametrize(
    ("steps", "schedule"), [(2, None), (5, Cosine(4.0, -3.0)), (12, None), (None, None)]
)
def test_a_file_is_as_long_as_the_bound(tmp_path, steps, schedule):
    x, process = draw(1500, 10), Masked(2)
    model = TokenDenoiser(Chain(process), process)
    options = {} if schedule is None else {"schedule": schedule}
    written = round_trip(tmp_path, model, x, steps=steps, batch=500, **options)
    own = written.log_ratio / (10 * BITS)
    generator, draws = torch.Generator().manual_seed(1), steps or 10
    bounding = model if steps else TokenDenoiser(Chain(process), AnyOrder(2))
    given = {"schedule": schedule or LogLinear(), "draws": draws, "generator": generator}
    bound = elbo(bounding, x, steps=steps, **given).bits_per_token.double()
    errors = (own.var() + bound.var()).item() / len(x)
    coded, stated = written.bits_per_token, bound.mean().item()
    assert abs(coded - stated) < 0.002 + 3 * math.sqrt(errors)
    assert abs(coded - own.mean().item()) < 2e-4


def test_files_are_as_long_as_the_entropy(tmp_path):
    """Exact conditionals, one token in each step: a hundred files."""
    process, length, texts = AnyOrder(2), 12, 40
    model, lengths = TokenDenoiser(Chain(process), process), []
    for seed in range(100):
        x = draw(texts, length, seed)
        written = compress(model, x, tmp_path / "f", seed=seed)
        lengths.append(written.bits / (texts * length))
    mean, error = np.mean(lengths), np.std(lengths) / math.sqrt(99)
    of_turn = -0.9 * math.log2(0.9) - 0.1 * math.log2(0.1)
    entropy = (1 + (length - 1) * of_turn) / length
    assert entropy - 3 * error < mean < 1.01 * entropy + 3 * error
    assert error < 0.005


@pytest.mark.parametrize("vocabulary", [256, 4096])
def test_whole_numbers_cost_less_than_is_said(tmp_path, vocabulary):
    x, model = rand((100, 100), vocabulary), model_of(vocabulary)
    written = round_trip(tmp_path, model, x, steps=3)
    over = written.bits_per_token - written.path_bits_per_dim
    assert -0.002 < over < written.cost + 3 / x.numel()  # unlikely values take fewer bits
    assert written.cost < 1e-4


def test_many_values_are_coded_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "TABLE", 700)
    round_trip(tmp_path, model_of(300), rand((5, 9), 300), steps=2)


def test_what_lies_deep_is_written_early_and_read_late(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 16)
    monkeypatch.setattr(compression, "SPARE", 2)
    x, model, path = rand((100, 16), 256), model_of(256), tmp_path / "f"
    np.save(tmp_path / "x.npy", x.numpy().astype(np.uint16))
    most, put = [], Stack.put_below
    monkeypatch.setattr(Stack, "put_below", lambda s, w: put(s, w) or most.append(len(s)))
    compress(model, np.load(tmp_path / "x.npy", mmap_mode="r"), path, steps=2, batch=7)
    facts = Container.open(path).facts
    assert facts.batches == [[2, 1], [7, 14]]
    assert facts.depth < Container.open(path).words / 4
    most.clear()
    parts = list(decompress_batches(model, path))
    assert torch.equal(torch.cat(parts).long(), x)
    assert 0 < max(most) < Container.open(path).words / 4


def test_conditions_belong_to_their_texts(tmp_path):
    x, shift, model = rand((9, 4), 20), torch.arange(9.0), model_of(20)
    compress(model, x, tmp_path / "f", batch=4, condition={"shift": shift})
    assert torch.equal(decompress(model, tmp_path / "f", condition={"shift": shift}), x)
    with pytest.raises(InvalidValue, match="with the condition that it was written with"):
        decompress(model, tmp_path / "f", condition={"shift": shift + 1})


def test_bits_per_byte_are_of_the_bytes_counted(tmp_path):
    x, model = rand((3, 5), 300), model_of(300)
    for counted in (30, [7, 3, 20], np.array([7, 3, 20])):
        written = compress(model, x, tmp_path / "f", bytes=counted)
        assert written.bits_per_byte == written.bits / 30
        assert str(written).endswith("; 30 bytes counted")
    with pytest.raises(InvalidValue, match="'bytes' must be given to compress"):
        _ = compress(model, x, tmp_path / "f").bits_per_byte


def test_progress_counts_evaluations(tmp_path):
    seen, model = [], model_of(9)
    compress(model, rand((5, 4), 9), tmp_path / "f", progress=lambda *p: seen.append(p))
    assert (seen[0], seen[-1]) == ((0, 20), (20, 20))
    decompress(model, tmp_path / "f", progress=lambda *p: seen.append(p))
    assert seen[-1] == (20, 20)


@pytest.mark.parametrize("steps", [None, 5])
def test_a_network_may_keep_or_change_its_input(tmp_path, steps):
    class Own(Net):
        last = None

        def forward(self, z):
            if self.last is None or not torch.equal(self.last[0], z):
                self.last = z, super().forward(z)
            return self.last[1]

    class Writes(Net):
        def forward(self, z):
            return super().forward(z.sub_(1).clamp_(min=0))

    for network in (Own(20), Writes(20)):
        round_trip(tmp_path, TokenDenoiser(network, Masked(20)), rand((5, 6), 20), steps=steps)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("codec") / "f"
    compress(model_of(20), rand((5, 4), 20), path, steps=3)
    return path


@pytest.mark.parametrize(
    ("model", "changes", "what"),
    [
        (model_of(20, seed=1), {}, "weights"),
        (model_of(20, mask=4), {}, "process"),
        (model_of(20), {"schedule": Cosine()}, "chain"),
        (Tempered(model_of(20), 0.7), {}, "weights"),
    ],
)
def test_another_model_is_refused_by_name(written, model, changes, what):
    with pytest.raises(InvalidValue, match=f"decoded with the {what} that it was written"):
        decompress(model, written, **changes)


@pytest.mark.parametrize("changes", [{"temperature": 0.7000001}, {"top_p": 0.9}])
def test_another_temperature_is_refused_by_name(tmp_path, changes):
    x, given = rand((5, 4), 20), {"temperature": 0.7, "top_p": 1.0}
    compress(Tempered(model_of(20), **given), x, tmp_path / "f", steps=3)
    assert torch.equal(decompress(Tempered(model_of(20), **given), tmp_path / "f"), x)
    with pytest.raises(InvalidValue, match="with the settings that it was written with"):
        decompress(Tempered(model_of(20), **given | changes), tmp_path / "f")


def test_a_code_that_the_model_lacks_is_refused(written, tmp_path):
    with pytest.raises(
        InvalidValue, match="'path' must hold a code that the model has; got masks"
    ):
        decompress(model_of(20, process=AnyOrder), written)
    compress(model_of(20), rand((5, 4), 20), tmp_path / "f")
    with pytest.raises(InvalidValue, match="'path' must hold a code that the model has; got any"):
        decompress(model_of(20, timed=True), tmp_path / "f")


def test_sizes_that_a_file_only_claims_take_no_memory(tmp_path):
    """Sound by its checksum, and false: refused before anything of that size is made."""
    compress(model_of(20), rand((5, 4), 20), tmp_path / "f")
    facts, out = asdict(Container.open(tmp_path / "f").facts), tmp_path / "g"
    for changes, what in [
        ({"shape": [1, 2**27], "batches": [[1, 1]]}, "have a step for each token"),
        ({"shape": [2**37, 4], "batches": [[1, 2**37]]}, "decoded to the images"),
    ]:
        with out.open("wb") as stream:
            writer = Writer(stream)
            writer.words(np.arange(1, 9, dtype=np.uint32))
            writer.close(Facts(**facts | changes | {"start": 1, "depth": 1}))
        tracemalloc.start()
        with pytest.raises(InvalidValue, match=what):
            for _ in decompress_batches(model_of(20), out):
                pass
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()


def test_another_kind_is_refused(written, tmp_path):
    image = Denoiser(lambda z, logsnr: z, V())
    chain = {"schedule": Cosine(), "decoder": Categorical(20)}
    with pytest.raises(InvalidValue, match="hold images, as the model does; got tokens"):
        decompress(image, written, **chain)
    compress(image, rand((5, 4), 20), tmp_path / "f", steps=3, **chain)
    with pytest.raises(InvalidValue, match="hold tokens, as the model does; got images"):
        decompress(model_of(20), tmp_path / "f")


def test_damaged_files_are_refused_before_the_network_runs(written, tmp_path):
    raw, rng, refused = written.read_bytes(), random.Random(0), 0
    model = TokenDenoiser(lambda z: 1 / 0, Masked(20))
    while refused < 200:
        other = damaged(raw, rng)
        if other == raw:
            continue
        (tmp_path / "f").write_bytes(other)
        with pytest.raises(InvalidValue):
            decompress(model, tmp_path / "f")
        refused += 1


def test_other_last_bits_are_no_tokens(tmp_path):
    x = rand((5, 6), 20)
    compress(TokenDenoiser(lambda z: Net(20)(z).detach(), Masked(20)), x, tmp_path / "f")
    other = TokenDenoiser(lambda z: 1.01 * Net(20)(z).detach(), Masked(20))
    with pytest.raises(InvalidValue, match="the network did not compute the same last bits"):
        decompress(other, tmp_path / "f")


@pytest.mark.parametrize(
    ("model", "x", "options", "text"),
    [
        (TokenDenoiser(Net(9), Uniform(9)), rand((2, 3), 9), {"steps": 3}, "have masks"),
        (TokenDenoiser(Net(9), Hybrid.gidd(9)), rand((2, 3), 9), {"steps": 3}, "have masks"),
        (model_of(9, timed=True), rand((2, 3), 9), {}, "'steps' must be given"),
        (model_of(9, process=AnyOrder), rand((2, 3), 9), {"steps": 3}, "be None for AnyOrder"),
        (model_of(9, timed=True, process=AnyOrder), rand((2, 3), 9), {}, "get no time"),
        (model_of(9), rand((2, 3), 9), {"decoder": Categorical(9)}, "be left out for tokens"),
        (model_of(9), rand((2, 3), 12), {}, r"lie in 0 … 8"),
        (model_of(9, mask=4), torch.full((2, 3), 4), {}, "hold no mask"),
        (model_of(9), rand((2, 3), 9).float(), {}, "whole numbers"),
        (model_of(9), rand((2, 3), 9), {"absent": torch.ones(2, 3) > 0}, "every token is coded"),
        (model_of(9), torch.zeros(1, 100_001).int(), {}, "at most 100,000 tokens a text"),
        (model_of(9), rand((2, 3), 9), {"bytes": [1, 0]}, "at least 1 for each text"),
        (model_of(9), rand((2, 3), 9), {"bytes": [1]}, "a number for each of 2 texts"),
        (model_of(9), rand((2, 3), 9), {"seed": -1}, "'seed' must be at least 0"),
        (model_of(9, scale=math.nan), rand((2, 3), 9), {}, "'model' must be finite"),
        (Denoiser(Net(9), V()), rand((2, 3), 9), {"decoder": Categorical(9), "steps": 3},
         "'schedule' must be a Schedule"),
    ],
)  # fmt: skip
def test_what_cannot_be_coded_is_refused(tmp_path, model, x, options, text):
    with pytest.raises((InvalidArgument, TypeError), match=text):
        compress(model, x, tmp_path / "f", **options)
    assert not list(tmp_path.iterdir())
