"""The example of text: its tokens, its n-gram against plain counts, its errors, a quick run."""

import itertools
import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff.data import Text

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import text as example
from byte_pairs import BytePairs
from text import Row, per_byte
from text_baselines import NGram, best_ngram, bits_by_window, compressed, longest
from text_mixed import best_share, bits_of, counted, in_order
from text_training import (
    Windows,
    autoregressive_loss,
    calibrate,
    masked_loss,
    nats,
    written,
)

from vdiff.nn import Transformer

WORDS = b"the cat sat on the mat; the rat ate that hat, and the cat ate the rat. aaaaa aaaaaaa aa "


def naive(document, merges):
    """Tokens of a document, pair by pair from the left."""
    tokens = list(document)
    for new, pair in enumerate(merges, start=256):
        i, out = 0, []
        while i < len(tokens):
            found = tuple(tokens[i : i + 2]) == pair
            out.append(new if found else tokens[i])
            i += 1 + found
        tokens = out
    return tokens


def test_tokens_are_merged_from_the_left_and_hold_every_byte():
    pairs = BytePairs.learned([WORDS, b"thethe"], 20)
    assert pairs.vocabulary == 276
    for document in (WORDS, b"aaa", b"a", b"aaaaaa the", bytes(range(256))):
        tokens = pairs.encode(document)
        assert tokens.tolist() == naive(document, pairs.merges)
        assert pairs.decode(tokens) == document


def test_the_most_frequent_pair_is_first_and_none_crosses_documents():
    assert BytePairs.learned([b"ab"] * 3 + [b"cd"] * 2, 2).merges == [(97, 98), (99, 100)]


def plain_ngram(text, order):
    """p(byte | context) by interpolated Kneser-Ney with dictionaries."""
    grams = [Counter(text[i : i + order] for i in range(len(text) - order + 1))]
    for n in range(order - 1, 0, -1):
        longer = {text[i : i + n + 1] for i in range(len(text) - n)}
        grams.insert(0, Counter(gram[1:] for gram in longer))
    discounts = []
    for counts in grams:
        of = [0, *(max(1, sum(c == i for c in counts.values())) for i in (1, 2, 3, 4))]
        y = of[1] / (of[1] + 2 * of[2])
        each = [max(0.05, i - (i + 1) * y * of[i + 1] / of[i]) for i in (1, 2, 3)]
        discounts.append([0.0, *each])
    tables = [defaultdict(dict) for _ in grams]
    for table, counts in zip(tables, grams, strict=True):
        for gram, count in counts.items():
            table[gram[:-1]][gram[-1]] = count

    def p(byte, context):
        value = 1 / 256
        for n, (table, each) in enumerate(zip(tables, discounts, strict=True)):
            following = table.get(context[len(context) - n :]) if n <= len(context) else None
            if following is None:
                continue
            total = sum(following.values())
            left = sum(each[min(c, 3)] for c in following.values()) / total
            count = following.get(byte, 0)
            value = (count - each[min(count, 3)]) / total + left * value
        return value

    return p


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_ngram_is_that_of_plain_counts_and_adds_up_to_one(order):
    model, p = NGram(WORDS, order), plain_ngram(WORDS, order)
    other = b"the fat cat ate a hat"
    for context in (b"", b"t", b"the c", b"zzz", b" aaaa"):
        each = [
            model.probabilities(context + bytes([v]), np.arange(len(context) + 1))[-1]
            for v in range(256)
        ]
        assert sum(each) == pytest.approx(1, abs=1e-12)
        assert each == pytest.approx([p(v, context) for v in range(256)], rel=1e-12)
    windows = [other[:9], other[9:]]
    expected = [-sum(math.log2(p(w[i], w[:i])) for i in range(len(w))) for w in windows]
    assert bits_by_window(model, windows) == pytest.approx(expected, rel=1e-12)


def test_an_ngram_of_tokens_is_that_of_the_bytes_where_tokens_are_bytes():
    assert (longest(256), longest(257), longest(1792)) == (8, 7, 5)
    tokens, other = np.frombuffer(WORDS, np.uint8), np.frombuffer(b"the fat cat", np.uint8)
    seen = np.arange(len(other))
    found = NGram(tokens, 3, 256).probabilities(other, seen)
    assert found == pytest.approx(NGram(WORDS, 3).probabilities(b"the fat cat", seen), rel=1e-12)
    wide = NGram(tokens.astype(np.int64) + 1000, 3, 1792)
    each = [wide.probabilities(np.array([1116, 1104, v]), np.arange(3))[-1] for v in range(1792)]
    assert sum(each) == pytest.approx(1, abs=1e-12)
    chosen = best_ngram(WORDS, [b"the cat sat on the hat"])
    bits = [bits_by_window(NGram(WORDS, n), [b"the cat sat on the hat"])[0] for n in range(1, 9)]
    assert chosen.order == 1 + int(np.argmin(bits))


def test_what_a_compressor_adds_is_less_where_the_text_was_seen():
    assert compressed("xz", WORDS, WORDS) < 0.3 * compressed("xz", WORDS)
    assert compressed("gzip", WORDS, WORDS) < 0.3 * compressed("gzip", WORDS)


def test_windows_hold_every_byte_once():
    pairs = BytePairs.learned([WORDS], 20)
    part = Text({"a": WORDS, "b": b"the rat"}, 128)
    windows = Windows.of(part, pairs, 8)
    assert b"".join(windows.content) == WORDS + b"the rat"
    assert int(windows.bytes.sum()) == part.bytes
    tokens = windows.tokens[~windows.absent].tolist()
    assert pairs.decode(tokens) == WORDS + b"the rat"
    assert windows.absent[:-1].sum() == -len(pairs.encode(WORDS)) % 8


def test_the_error_of_bits_per_byte_is_that_of_a_ratio():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(50, 200, (500, 40), generator=generator).double()
    bits = 2 * counts + 20 * torch.randn(500, 40, generator=generator, dtype=torch.float64)
    found = torch.tensor([per_byte(b, c) for b, c in zip(bits, counts, strict=True)])
    assert found[:, 0].std() == pytest.approx(found[:, 1].mean().item(), rel=0.1)
    row = Row.of(bits[0], counts[0], bits[0] - counts[0])
    assert row.difference == pytest.approx(-1)
    assert row.difference_windows == pytest.approx(0, abs=1e-12)


def random_network(causal):
    torch.manual_seed(0)
    network = Transformer(3, length=4, width=8, depth=1, heads=2, causal=causal)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network.eval()


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_both_losses_and_both_writers_are_of_one_distribution(causal):
    """e^{−nats} of all sequences adds up to one for the autoregressive network, and to less for
    a bound; what is written has frequencies not below the bound's."""
    network = random_network(causal)
    x = torch.tensor(list(itertools.product(range(3), repeat=4)))
    windows = Windows(x, torch.zeros_like(x, dtype=torch.bool), [b""] * len(x))
    loss = (autoregressive_loss if causal else masked_loss)(network)
    p = (-nats(loss, windows, 1 if causal else 60)).exp()
    made = written(network, 3000, torch.Generator().manual_seed(1))
    share = torch.bincount((made * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81) / 3000
    error = (p / 3000).sqrt()
    if causal:
        assert p.sum().item() == pytest.approx(1, abs=1e-5)
        assert ((share - p) / error).abs().max() < 4.5
    else:
        assert 0.9 < p.sum() < 1.01  # errors of the draws make it larger
        assert ((share - p) / error).min() > -4.5


@pytest.mark.parametrize("causal", [False, True])
def test_from_left_to_right_all_windows_have_probability_one(causal):
    network = random_network(causal)
    x = torch.tensor(list(itertools.product(range(3), repeat=4)))
    windows = Windows(x, torch.zeros_like(x, dtype=torch.bool), [b""] * len(x))
    found = in_order(network, windows)
    assert found.prod(1).sum().item() == pytest.approx(1, abs=1e-6)
    first = found[:, 0].view(3, 27)
    assert torch.equal(first, first[:, :1].expand(3, 27))
    half = torch.tensor([[False, False, True, True]]).expand_as(x)
    padded = in_order(network, Windows(x, half, windows.content))
    torch.testing.assert_close(padded, found.masked_fill(half, 1.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(bits_of(padded).exp2(), 1 / padded.prod(1))


def test_an_ngram_in_windows_sees_nothing_before_them():
    x = torch.tensor([[1, 0, 2, 2], [2, 1, 0, 0]])
    absent = torch.tensor([[False] * 4, [False, False, True, True]])
    ngram = NGram(np.array([0, 1, 2, 2, 1, 0, 2, 0, 1, 1]), 2, 3)
    found = counted(ngram, Windows(x, absent, [b"", b""]))
    for row, size in ((0, 4), (1, 2)):
        p = ngram.probabilities(x[row, :size].numpy(), np.arange(size))
        assert found[row].tolist() == pytest.approx([*p, *[1.0] * (4 - size)])


def test_the_share_and_the_temperature_are_those_that_made_the_data():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(20_000, 5, generator=generator).double().softmax(1) for _ in range(2))
    drawn = torch.lerp(3 * p, 3 * q, 0.3).div(3).multinomial(1, generator=generator)
    share = best_share(p.gather(1, drawn), q.gather(1, drawn))
    assert share == pytest.approx(0.3, abs=0.1)
    network = random_network(causal=True)
    x = written(network, 4000, generator)
    for parameter in network.last.parameters():
        parameter.data *= 1.5
    windows = Windows(x, torch.zeros_like(x, dtype=torch.bool), [b""] * len(x))
    loss = autoregressive_loss(network)
    before = nats(loss, windows).sum()
    assert calibrate(network, loss, windows) == pytest.approx(1.5, abs=0.1)
    assert nats(loss, windows).sum() < before


def test_a_quick_run_prints_every_row_and_saves_samples(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["text.py", "--quick", "--out", str(tmp_path)])
    example.main()
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows["uniform"]["bits"] == 8
    assert 4 < rows["unigram"]["bits"] < 5
    masked = rows["masked diffusion"]
    assert 4 < masked["bits"] < 8.5
    assert masked["monte_carlo"] < masked["windows"]
    causal = rows["autoregressive"]
    assert causal["difference"] == pytest.approx(masked["bits"] - causal["bits"], abs=1e-6)
    names = " ".join(rows)
    assert "gram of bytes" in names
    assert "gram of tokens" in names
    for name in ("masked, left to right", "autoregressive"):
        alone = [rows[row]["bits"] for row in rows if "gram of tokens" in row or row == name]
        assert rows[f"{name}, with counts"]["bits"] < min(alone) + 0.01
    assert all(f"{name}, after the training text" in rows for name in ("gzip", "xz"))
    assert (tmp_path / "samples.txt").read_text(encoding="utf-8").count("--- ") >= 8
    out = capsys.readouterr().out
    assert "bits/byte on the selection" in out
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") in out
