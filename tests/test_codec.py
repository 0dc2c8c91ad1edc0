"""The codec: images come back byte for byte, and what another model wrote is refused."""

import math

import numpy as np
import pytest
import torch
from coded import LINEAR, Net, latents_of, objective, of_digits, push, round_trip

from vdiff import Denoiser
from vdiff.chain import first_variance
from vdiff.codec import batches, compress, compression, decompress, decompress_batches
from vdiff.codec import decompression as module
from vdiff.codec.container import Container
from vdiff.codec.latents import Latents
from vdiff.codec.stack import Stack
from vdiff.data.digits import digits
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.errors import InvalidType, InvalidValue
from vdiff.nn import UNet
from vdiff.parameterization import Eps, V, X
from vdiff.schedule import Cosine, InTurn, LearnedLinear, Linear, Tabulated
from vdiff.variance import FixedLarge, LearnedRange

pytest.importorskip("constriction")


def ddpm(levels):
    """DDPM's chain with a learned variance and a decoder that uses the network."""
    schedule = Tabulated.linear_betas(0.002, 0.4, 11)
    options = {"uses_network": True, "posterior_variance": first_variance(schedule, 10)}
    return schedule, DiscretizedGaussian(levels, **options), 10


def photographs(count):
    """Squares of a photograph in CIFAR-10's form."""
    from sklearn.datasets import load_sample_image

    picture = load_sample_image("china.jpg").transpose(2, 0, 1)
    squares = [picture[:, i * 40 : i * 40 + 32, i * 50 : i * 50 + 32] for i in range(count)]
    return torch.from_numpy(np.stack(squares))


def rand(shape, levels, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, levels, shape))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, 8, 8), (7, 1, 5, 3), (20, 2), (9, 3, 4, 4)]
)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_random_images_come_back(tmp_path, shape, levels):
    data = rand(shape, levels).to(torch.uint8)
    model = Denoiser(Net(math.prod(shape[1:])), V())
    _, back = round_trip(tmp_path, model, data, LINEAR, Categorical(levels), 6)
    assert back.dtype == torch.uint8
    assert torch.equal(back, data)


def test_photographs_come_back_through_a_unet(tmp_path):
    torch.manual_seed(0)
    model = Denoiser(UNet(3, width=8, multipliers=[1, 1], attention=[]), V())
    _, back = round_trip(tmp_path, model, photographs(5), LINEAR, Categorical(256), 3)
    assert torch.equal(back, photographs(5))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_images_come_back(tmp_path, value):
    data = torch.full((4, 1, 6, 6), value)
    decoder = Categorical(256, levels_at_ends=True)
    _, back = round_trip(tmp_path, Denoiser(Net(36), X()), data, LINEAR, decoder, 5)
    assert torch.equal(back, data)
    assert back.dtype == torch.int64


@pytest.mark.parametrize("variance", [FixedLarge(), LearnedRange()])
def test_chains_of_ddpm_come_back(tmp_path, variance):
    schedule, decoder, steps = ddpm(256)
    model = Denoiser(Net(16, 1 + variance.learned), Eps(), variance=variance)
    data = rand((6, 1, 4, 4), 256)
    _, back = round_trip(tmp_path, model, data, schedule, decoder, steps)
    assert torch.equal(back, data)


@pytest.mark.parametrize("schedule", [Cosine(8.0, -8.0), LearnedLinear(9.0, -6.0)])
def test_other_schedules_come_back(tmp_path, schedule):
    data = rand((6, 1, 4, 4), 17)
    _, back = round_trip(tmp_path, Denoiser(Net(16), V()), data, schedule, Categorical(17), 8)
    assert torch.equal(back, data)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", ">i4"])
def test_arrays_in_a_file_come_back_in_their_dtype(tmp_path, dtype):
    (tmp_path / "in").mkdir()
    data = np.random.default_rng(0).integers(0, 300, (5, 3, 4)).astype(dtype)
    np.save(tmp_path / "in" / "images.npy", data)
    mapped = np.load(tmp_path / "in" / "images.npy", mmap_mode="r")
    model, path = Denoiser(Net(12), V()), tmp_path / "f"
    given = {"schedule": LINEAR, "decoder": Categorical(300)}
    compress(model, mapped, path, steps=4, **given)
    back = decompress(model, path, **given).numpy()
    assert back.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(back, data)


def test_digits_come_back_from_the_same_file_every_time(tmp_path):
    data = digits().test[:6]
    first, second = tmp_path / "1", tmp_path / "2"
    model, raw = objective().model, []
    for path in (first, second):
        compress(model, data, path, steps=5, **of_digits())
        raw.append(path.read_bytes())
    assert raw[0] == raw[1]
    assert torch.equal(decompress(model, first, **of_digits()), data)


def test_a_variance_that_is_not_finite_is_refused(tmp_path):
    net = Net(4, 2)
    net.b.data[:, 4:] = math.nan
    model = Denoiser(net, Eps(), variance=LearnedRange())
    given = {"schedule": LINEAR, "decoder": Categorical(4), "steps": 5}
    with pytest.raises(InvalidValue, match="'model' must be finite"):
        compress(model, rand((3, 1, 2, 2), 4), tmp_path / "f", **given)


def test_a_file_replaces_another_one_and_a_failure_leaves_it(tmp_path):
    path, data = tmp_path / "f", rand((3, 1, 2, 2), 4)
    path.write_text("before")
    model = Denoiser(lambda z, logsnr: z / 0, V())
    given = {"schedule": LINEAR, "decoder": Categorical(4), "steps": 5}
    with pytest.raises(InvalidValue, match="'model' must be finite; got NaN or infinity at λ = "):
        compress(model, data, path, **given)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]

    def stops(done, total):
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(Denoiser(Net(4), V()), data, path, progress=stops, **given)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_what_lies_deep_is_written_early_and_read_late(tmp_path, monkeypatch):
    """Images beyond the memory of both sides: little of the payload is on a stack at a time."""
    monkeypatch.setattr(compression, "SPARE", 1)
    monkeypatch.setattr(module, "AT_ONCE", 16)
    data, model = rand((120, 1, 2, 4), 256), Denoiser(Net(8), V())
    given, path = {"schedule": LINEAR, "decoder": Categorical(256)}, tmp_path / "f"
    most = []
    take, put = Stack.take_below, Stack.put_below
    monkeypatch.setattr(Stack, "take_below", lambda s, k: most.append(len(s)) or take(s, k))
    monkeypatch.setattr(Stack, "put_below", lambda s, w: put(s, w) or most.append(-len(s)))
    compress(model, data, path, steps=5, batch=2, **given)
    words = Container.open(path).words
    assert len([m for m in most if m > 0]) > 3
    assert max(most) < words / 2
    most.clear()
    parts = decompress_batches(model, path, **given)
    first = next(parts)
    assert torch.equal(first, data[: len(first)])
    assert torch.equal(torch.cat([first, *parts]), data)
    assert max(-m for m in most) < words / 2


def test_batches_grow_with_what_is_there(tmp_path):
    data = digits().test[:60]
    written = compress(objective().model, data, tmp_path / "f", steps=3, batch=8, **of_digits())
    facts = Container.open(tmp_path / "f").facts
    sizes = [size for size, count in facts.batches for _ in range(count)]
    assert sizes[-1] == 1  # the first to be encoded
    assert max(sizes) == 8
    assert sum(sizes) == 60
    assert written.start == 32 * facts.start < 64 * 30  # bits of one image


def test_more_words_are_put_below_where_the_estimate_was_short(tmp_path, monkeypatch):
    monkeypatch.setattr(Latents, "start_bits", 0.5)
    data = rand((9, 1, 4, 4), 17)
    model, decoder = Denoiser(Net(16), V()), Categorical(17)
    written, back = round_trip(tmp_path, model, data, LINEAR, decoder, 6)
    assert torch.equal(back, data)
    assert written.start > 16 * 5


def test_latents_are_random_where_the_model_is_wrong(monkeypatch):
    """What was pushed under wrong distributions is not what is popped."""
    noise, pop = [], batches._pop

    def noting(stack, normal):
        index = pop(stack, normal)
        noise.append((index - normal.mean) / normal.std)
        return index

    monkeypatch.setattr(batches, "_pop", noting)
    model = Denoiser(Net(64, seed=3), X())
    push(latents_of(model, LINEAR, Categorical(256), 4), rand((150, 1, 8, 8), 256))
    for drawn in noise:
        assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / len(drawn))
        assert np.abs(drawn).max() < 8


def test_progress_counts_evaluations(tmp_path):
    seen, data = [], rand((5, 1, 2, 2), 4)
    given = {"schedule": LINEAR, "decoder": Categorical(4)}
    model = Denoiser(Net(4), V())
    compress(model, data, tmp_path / "f", steps=7, progress=lambda *p: seen.append(p), **given)
    assert seen[0] == (0, 35)
    assert seen[-1] == (35, 35)
    seen.clear()
    decompress(model, tmp_path / "f", progress=lambda *p: seen.append(p), **given)
    assert seen[-1] == (35, 35)


def test_conditions_belong_to_their_images(tmp_path):
    data, label = rand((9, 1, 2, 2), 4), torch.arange(9)
    given = {"schedule": LINEAR, "decoder": Categorical(4)}
    model, path = Denoiser(Net(4), V()), tmp_path / "f"
    compress(model, data, path, steps=4, condition={"label": label}, **given)
    assert torch.equal(decompress(model, path, condition={"label": label}, **given), data)
    for other in ({"label": label.flip(0)}, None):
        with pytest.raises(InvalidValue, match="with the condition that it was written with"):
            decompress(model, path, condition=other, **given)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("codec") / "f"
    data = rand((5, 1, 2, 2), 4)
    given = {"schedule": LINEAR, "decoder": Categorical(4)}
    compress(Denoiser(Net(4), V()), data, path, steps=4, **given)
    return path, given


@pytest.mark.parametrize(
    ("model", "changes", "what"),
    [
        (Denoiser(Net(4, seed=1), V()), {}, "weights"),
        (Denoiser(Net(4), X()), {}, "model"),
        (Denoiser(Net(4), V(), variance=FixedLarge()), {}, "model"),
        (Denoiser(Net(4), V()), {"schedule": Linear(9.0, -7.01)}, "chain"),
        (Denoiser(Net(4), V()), {"schedule": Cosine(9.0, -7.0)}, "chain"),
        (Denoiser(Net(4), V()), {"decoder": Categorical(5)}, "decoder"),
        (Denoiser(Net(4), V()), {"decoder": Categorical(4, levels_at_ends=True)}, "decoder"),
        (Denoiser(Net(4), V()), {"decoder": Categorical.fit(rand((5, 1, 2, 2), 4), 4)}, "decoder"),
    ],
)
def test_another_model_is_refused_by_name(written, model, changes, what):
    path, given = written
    with pytest.raises(InvalidValue, match=f"must be decoded with the {what} that it was written"):
        decompress(model, path, **given | changes)


def test_other_software_and_threads_are_refused_by_name(written, monkeypatch):
    path, given = written
    model, threads = Denoiser(Net(4), V()), torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    text = rf"the threads that it was written with, {threads}; got {threads + 1} here \(torch\.set"
    with pytest.raises(InvalidValue, match=text):
        decompress(model, path, **given)
    monkeypatch.undo()
    versions = {"torch": "1.0", "numpy": np.__version__, "constriction": "0.5.0"}
    monkeypatch.setattr("vdiff.codec._identity.version", versions.__getitem__)
    with pytest.raises(InvalidValue, match="decoded with the torch that it was written with"):
        decompress(model, path, **given)


def test_other_last_bits_are_no_images(tmp_path):
    """A function without weights, which the file cannot know: its last bits are other ones."""
    path, data = tmp_path / "f", rand((5, 1, 2, 2), 256)
    given = {"schedule": LINEAR, "decoder": Categorical(256)}
    compress(Denoiser(lambda z, logsnr: 0.3 * z, V()), data, path, steps=20, **given)
    other = Denoiser(lambda z, logsnr: 0.3001 * z, V())
    with pytest.raises(InvalidValue, match=r"the network did not compute the same last bits here"):
        decompress(other, path, **given)
    read = []
    with pytest.raises(InvalidValue):
        read.extend(decompress_batches(other, path, **given))


def test_a_damaged_file_is_refused_before_the_network_runs(written):
    path, given = written
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    other = path.with_name("damaged")
    other.write_bytes(raw)

    def never(z, logsnr):
        raise AssertionError

    with pytest.raises(InvalidValue, match="must have its own checksum"):
        decompress(Denoiser(never, V()), other, **given)


@pytest.mark.parametrize(
    ("data", "changes", "error", "text"),
    [
        (rand((5, 4), 4).float(), {}, InvalidType, "'data' must be whole numbers; got float32"),
        ([1, 2], {}, InvalidType, "'data' must be a tensor or a NumPy array"),
        (rand((5,), 4), {}, InvalidValue, "'data' must have shape"),
        (rand((5, 4), 5), {}, InvalidValue, "'data' must lie in 0 … 3"),
        (rand((5, 4), 4), {"decoder": Gaussian()}, InvalidType, "'decoder' must be a Levels"),
        (rand((5, 4), 4), {"tolerance": 0.0}, InvalidValue, "'tolerance' must be finite and"),
        (rand((5, 4), 4), {"steps": 0}, InvalidValue, "'steps' must be at least 1"),
        (rand((5, 4), 4), {"schedule": Tabulated([2.0, 1.0, 0.0])}, InvalidValue, "div"),
        (rand((5, 4), 4), {"schedule": InTurn(LINEAR, 4)}, InvalidValue, "have one λ for"),
    ],
)  # fmt: skip
def test_what_cannot_be_coded_is_refused(tmp_path, data, changes, error, text):
    given = {"schedule": LINEAR, "decoder": Categorical(4), "steps": 3} | changes
    with pytest.raises(error, match=text):
        compress(Denoiser(Net(4), V()), data, tmp_path / "f", **given)
    assert not list(tmp_path.iterdir())
