"""Conditions: every form that has a row for each image is taken by rows, in every estimate."""

import json
import math
from collections import UserDict, deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import TensorDataset

from vdiff import Denoiser
from vdiff.decoder import Categorical
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.likelihood import (
    Shared,
    Uniform,
    VarianceReduction,
    compare,
    dequantized_ode,
    evaluate,
    immse,
    ode_likelihood,
    path_importance,
)
from vdiff.likelihood.conditions import condition_digest, select_rows
from vdiff.oracle import Gaussian
from vdiff.parameterization import X
from vdiff.schedule import Linear
from vdiff.training import Validation
from vdiff.training.config import Config

DECODER = Categorical(17)
GRID = DECODER.level_values
LABELS = torch.randint(0, 17, (1024,), generator=torch.Generator().manual_seed(0))


class Offers:
    """An array of another library: all that it has is `__array__`."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype=dtype)


class Attributes(dict):
    """A mapping whose keys are attributes too, as many libraries have one."""

    __getattr__ = dict.__getitem__


@dataclass(slots=True)
class Slots:
    v: object


@dataclass
class Holds:
    part: object


FORMS = {
    "tensor": lambda v: v,
    "array": lambda v: v.numpy(),
    "list": lambda v: v.tolist(),
    "tuple": lambda v: tuple(v.tolist()),
    "list of tensors": lambda v: list(v),
    "deque": lambda v: deque(v.tolist()),
    "array of another library": lambda v: Offers(v.tolist()),
    "mapping": lambda v: {"inner": v},
    "mapping of another kind": lambda v: UserDict(inner=v.tolist()),
    "mapping with attributes": lambda v: Attributes(inner=v),
    "mapping of lists of arrays": lambda v: {"inner": {"pair": [v.numpy(), "a word"]}},
}


def plain(label):
    """The labels of a batch as a tensor, out of whatever form they came in."""
    while isinstance(label, dict):
        label = next(iter(label.values()))
    if isinstance(label, list) and isinstance(label[-1], str):
        label = label[0]
    return torch.as_tensor(label)


def told_its_level(grid=GRID):
    """A model that is given which level an image has, and says just that."""
    return Denoiser(lambda z, logsnr, label: grid[plain(label)][:, None].to(z).expand_as(z), X())


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_is_told_the_answer_needs_no_bits(form):
    """As many images as draws in a batch: labels that are not taken by rows fit the batch too."""
    found = evaluate(
        told_its_level(),
        LABELS[:, None],
        schedule=Linear(13.3, -13.3),
        decoder=DECODER,
        draws=4,
        condition={"label": FORMS[form](LABELS)},
    )
    assert found.total.value == pytest.approx(0.0, abs=2e-3)
    json.dumps(found.asdict(), allow_nan=False)


MEANS = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1, 2, 0, 1, 1])
POINTS = MEANS[CLASSES][:, None] + 0.3
ONE = Gaussian([0.0], [0.25])
TRUTH = -ONE.log_prob(torch.tensor([[0.3]])).item()
WIDE = Linear(14.0, -16.0)


def gaussian_of_its_class(z, logsnr, label):
    """N(mean of the class, ¼), exactly."""
    shift = MEANS[plain(label)][:, None]
    signal, noise = logsnr.sigmoid()[:, None], logsnr.neg().sigmoid()[:, None]
    return shift + signal.sqrt() * 0.25 / (0.25 * signal + noise) * (z - signal.sqrt() * shift)


EXACT = Denoiser(gaussian_of_its_class, X())
DENSITY = {"schedule": WIDE, "decoder": GaussianDecoder()}


def by_evaluate(label):
    return evaluate(
        EXACT, POINTS, **DENSITY, draws=32, condition={"label": label}
    ).by_image * math.log(2)


def by_ode(label):
    return ode_likelihood(EXACT, POINTS, schedule=WIDE, batch=2, condition={"label": label}).nats


def by_paths(label):
    chain = {"steps": 200, "samples": 8, "batch": 16}
    return path_importance(EXACT, POINTS, **DENSITY, **chain, condition={"label": label}).nats


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimate", [by_evaluate, by_ode, by_paths])
def test_every_estimate_gives_each_example_the_density_of_its_own_class(estimate, form):
    """Every point lies 0.3 from the mean of its class, and the wrong class misses by 6 nats."""
    nats = estimate(FORMS[form](CLASSES))
    assert torch.allclose(nats, torch.full_like(nats, TRUTH), atol=0.5), nats


@pytest.mark.parametrize("form", FORMS)
def test_estimates_that_have_no_number_in_closed_form_agree_with_tensors(form):
    levels, ends = LABELS[:6, None], Linear(15.0, -9.0)

    def worse(z, logsnr, label):
        return 0.9 * gaussian_of_its_class(z, logsnr, label)

    def of_levels(z, logsnr, label):
        return 0.3 * GRID[plain(label)][:, None].to(z) + 0.1 * z

    def difference(label):
        other = Denoiser(worse, X())
        return compare(
            EXACT, other, POINTS, **DENSITY, draws=8, condition={"label": label}
        ).difference.value

    def error_of_the_denoiser(label):
        known = Gaussian.fit(POINTS)
        return immse(
            EXACT, POINTS, schedule=ends, gaussian=known, batch=40, condition={"label": label}
        ).nats

    def dequantised(label):
        setting = {"dequantization": Uniform(DECODER), "schedule": Linear(4.0, -8.0), "batch": 2}
        return dequantized_ode(
            Denoiser(of_levels, X()), levels, **setting, condition={"label": label}
        ).nats

    cases = (difference, CLASSES), (error_of_the_denoiser, CLASSES), (dequantised, LABELS[:6])
    for estimate, given in cases:
        by_tensor, by_form = (
            torch.as_tensor(estimate(given)),
            torch.as_tensor(estimate(FORMS[form](given))),
        )
        torch.testing.assert_close(by_form, by_tensor, rtol=1e-9, atol=1e-9)


def test_a_validation_takes_its_labels_by_rows():
    network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8, "labels": 17}
    torch.manual_seed(0)
    objective = Config(network=network, conditional=True).objective()
    for parameter in objective.model.parameters():  # a new network's last layer is zero
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    images, label = torch.randint(0, 17, (16, 1, 8, 8)), torch.arange(16)
    whole = pytest.approx(
        Validation(images, condition={"label": label})(objective).value, rel=1e-6
    )
    assert Validation(images, batch=8, condition={"label": label})(objective).value == whole
    assert Validation(images, condition={"label": label.flip(0)})(objective).value != whole


def test_what_all_images_share_is_said_so():
    """Three images and a table of three rows: a table taken by rows is another table."""
    table = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)

    def network(z, logsnr, table):
        assert torch.as_tensor(table).shape == (3,)
        return table[2] * 0.1 * z

    data, model = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None], Denoiser(network, X())
    setting = {"schedule": Linear(7.0, -6.0), "decoder": GaussianDecoder(), "draws": 4}
    right = evaluate(Denoiser(lambda z, logsnr: 0.2 * z, X()), data, **setting).total
    right = pytest.approx(right.value, rel=1e-12)
    for shared in (Shared(table), Shared(table.numpy()), Shared(table.tolist())):
        assert evaluate(model, data, **setting, condition={"table": shared}).total.value == right
    inner = Denoiser(lambda z, logsnr, added: network(z, logsnr, added["table"]), X())
    nested = {"table": Shared(table)}
    assert evaluate(inner, data, **setting, condition={"added": nested}).total.value == right
    flow = ode_likelihood(
        model, data, schedule=Linear(7.0, -6.0), batch=2, condition={"table": Shared(table)}
    )
    assert flow.nats.isfinite().all()


def test_a_table_shared_by_all_images_is_still_shared_by_those_that_are_finite():
    data = torch.tensor([[0.5], [torch.nan], [-0.5], [0.25]])
    seen = []

    def network(z, logsnr, label, table, names):
        seen.append((label, table, names))
        return 0.1 * label[:, None] * z

    setting = {"schedule": Linear(7.0, -6.0), "decoder": GaussianDecoder(), "draws": 4}
    label, table, names = torch.tensor([1.0, 9.0, 2.0, 3.0]), torch.zeros(3), ["a", "b", "c"]
    evaluate(
        Denoiser(network, X()),
        data,
        skip_nonfinite=True,
        **setting,
        condition={"label": label, "table": table, "names": names},
    )
    assert {v for labels, _, _ in seen for v in labels.tolist()} == {1.0, 2.0, 3.0}
    assert all(len(t) == 3 and n == names for _, t, n in seen)


def test_parts_of_other_sizes_and_kinds_stay_as_they_are():
    module, word = nn.ModuleList([nn.Identity(), nn.Identity()]), object()
    given = {
        "text": "ab",
        "module": module,
        "scale": 2.0,
        "nothing": None,
        "word": word,
        "size": (64, 64, 3),
        "flag": True,
    }
    assert select_rows(given, torch.tensor([1, 1, 0]), 2) == given
    pair = (torch.tensor([1, 2]), torch.tensor([[3.0], [4.0]]), torch.zeros(5))
    found = select_rows({"pair": pair}, torch.tensor([1, 1, 0]), 2)["pair"]
    assert isinstance(found, tuple)
    assert [part.tolist() for part in found] == [[2, 2, 1], [[4.0], [4.0], [3.0]], [0.0] * 5]
    of_one_image = select_rows({"maps": [torch.tensor([[7.0]])]}, torch.tensor([0, 0]), 1)
    assert of_one_image["maps"][0].shape == (2, 1)
    assert select_rows({"text": ["a"]}, torch.tensor([0, 0]), 1) == {"text": ["a", "a"]}
    kept = select_rows({"maps": [torch.arange(3), 1.0]}, torch.tensor([0, 2]), 3)["maps"]
    assert kept[0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {1, 2, 3},
            TypeError,
            "be a tensor, an array or a list of 3 rows, one for each image; got set",
        ),
        (iter([1, 2, 3]), TypeError, "a list of 3 rows, one for each image; got list_iterator"),
        (TensorDataset(torch.zeros(3, 1)), TypeError, "got TensorDataset (Shared(label) where"),
        ({"inner": {1: 0, 2: 0, 3: 0}.keys()}, TypeError, "got dict_keys"),
        (
            SimpleNamespace(v=torch.zeros(3)),
            TypeError,
            "got a SimpleNamespace whose 'v' has 3 rows",
        ),
        ({"inner": SimpleNamespace(w=1, v=[0, 0, 0])}, TypeError, "whose 'v' has 3 rows"),
        (Slots(torch.zeros(3)), TypeError, "got a Slots whose 'v' has 3 rows"),
        (Holds({"inner": [torch.zeros(3), 1]}), TypeError, "got a Holds whose 'part' has 3 rows"),
        (Holds(Slots([0, 0, 0])), TypeError, "got a Holds whose 'part' has 3 rows"),
        (pack_sequence([torch.zeros(1)] * 3), TypeError, "padded to a tensor; got PackedSequence"),
        (
            torch.eye(3).to_sparse(),
            TypeError,
            "be indexed; got torch.sparse_coo (label.to_dense()",
        ),
        (
            torch.nested.nested_tensor([torch.zeros(1)] * 3, layout=torch.jagged),
            TypeError,
            "be a tensor whose rows can be indexed; got torch.jagged",
        ),
        ([torch.zeros(3)] * 3, ValueError, "got a list of 3 entries that have 3 rows themselves"),
    ],
)
def test_what_cannot_be_taken_by_rows_is_refused_by_name(given, error, words):
    """An object that holds one row for each image would go whole to every batch."""
    model = Denoiser(lambda z, logsnr, label: 0 * z, X())
    x = torch.zeros(3, 1)
    given, chain = {"label": given}, {"steps": 2, "samples": 2}
    noise = {"dequantization": Uniform(DECODER), "schedule": Linear(4.0, -8.0)}
    estimates = {
        "evaluate": lambda: evaluate(model, x, **DENSITY, condition=given),
        "ode_likelihood": lambda: ode_likelihood(model, x, schedule=WIDE, condition=given),
        "path_importance": lambda: path_importance(model, x, **DENSITY, **chain, condition=given),
        "immse": lambda: immse(model, x, schedule=WIDE, gaussian=ONE, condition=given),
        "dequantized_ode": lambda: dequantized_ode(model, x.long(), **noise, condition=given),
    }
    for name, estimate in estimates.items():
        with pytest.raises(error) as seen:
            estimate()
        assert str(seen.value).startswith(f"{name}: argument 'label' must ")
        assert words in str(seen.value)


def test_a_state_knows_its_conditions_in_every_form():
    """numpy writes a long array with dots in the middle, which two arrays may have in common."""
    states = []
    data = torch.zeros(1200, 1, dtype=torch.float64)
    setting = {
        "schedule": Linear(7.0, -6.0),
        "decoder": GaussianDecoder(),
        "draws": 2,
        "replicates": 2,
        "plan": VarianceReduction(pilot=16),
    }
    model = Denoiser(lambda z, logsnr, label: 0 * z, X())
    one = np.arange(1200.0)
    evaluate(model, data, checkpoint=states.append, **setting, condition={"label": one})
    other = one.copy()
    other[600] = -1.0
    evaluate(model, data, resume=states[-1], **setting, condition={"label": one.copy()})
    with pytest.raises(ValueError, match="'resume' must be the state of this evaluation"):
        evaluate(model, data, resume=states[-1], **setting, condition={"label": other})
    forms = (one, other, one.tolist(), other.tolist(), torch.from_numpy(one), Shared(one))
    assert len({str(condition_digest({"label": form})) for form in forms}) == len(forms)
    assert condition_digest({"a": {"b": (1, 2.0, "c", None)}}) == {"a": {"b": [1, 2.0, "c", None]}}
