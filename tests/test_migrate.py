"""The script of docs/migration.md rewrites code of 0.1."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import migrate  # noqa: E402

OLD = """import vdiff
from vdiff import Categorical, Cosine, Denoiser, Range, adams, hybrid
from vdiff.parameterization import Prediction

model = Denoiser(network, vdiff.V(), variance=Range())
decoder = Categorical(17, closed=True)
loss = hybrid(model, x, schedule=Cosine(), steps=10)
said = model(x, logsnr).but(out=x).stopped()
"""
NEW = """import vdiff
from vdiff.decoder import Categorical
from vdiff.schedule import Cosine
from vdiff import Denoiser, hybrid_loss
from vdiff.variance import LearnedRange
from vdiff.sampling import adams_bashforth
from vdiff import Prediction

model = Denoiser(network, vdiff.parameterization.V(), variance=LearnedRange())
decoder = Categorical(17, levels_at_ends=True)
loss = hybrid_loss(model, x, schedule=Cosine(), steps=10)
said = model(x, logsnr).replace(output=x).detach_mean()
"""


def test_code_is_rewritten():
    assert migrate.Migration(OLD).result() == NEW


@pytest.mark.parametrize("new", sorted(set(migrate.MOVED.values())))
def test_every_new_name_is_there(new):
    module, _, name = new.rpartition(".")
    assert getattr(importlib.import_module(module), name)


def test_the_script_shows_and_writes(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(
        OLD + "objective = vdiff.Objective(model, schedule=Cosine(), decoder=decoder)\n"
    )
    command = [sys.executable, str(ROOT / "docs/migrate.py"), str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "+from vdiff.schedule import Cosine" in shown.stdout
    assert "loss=Weighted(…), VLB(decoder, …)" in shown.stderr
    subprocess.run([*command, "--write"], capture_output=True, check=True)
    assert file.read_text().startswith(NEW)


def test_what_other_objects_may_have_too_is_only_shown():
    source = "import vdiff\nprediction = model(z, logsnr)\nprint(prediction.out, options.out)\n"
    migration = migrate.Migration(source)
    assert migration.result() == source
    assert migration.notes == ["line 3: .out: Prediction.out is Prediction.output"] * 2
    source = "from vdiff.weighting import Custom\nCustom(f, -8.0, 8.0).support()\n"
    notes = migrate.Migration(source).notes
    assert any("logsnr_max=" in note for note in notes)
    assert "line 2: .support: Weighting.support() is (λ_max, λ_min)" in notes


def test_the_steps_of_a_sampler_are_to_be_looked_at():
    migration = migrate.Migration(
        "from vdiff.sampling import encode, few_steps, sample\n"
        "sample(model, z, schedule=few_steps(), steps=18)\n"
    )
    assert "sampling import invert, logistic, sample\n" in migration.result()
    assert "schedule=logistic(), steps=18)" in migration.result()
    assert [note for note in migration.notes if "write n - 1" in note and "line 2" in note]
