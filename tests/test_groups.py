"""Parameter groups: schedules have no weight decay and a learning rate of their own."""

import torch
from points import points

from vdiff.groups import parameter_groups


def test_every_parameter_is_in_one_group_and_schedules_do_not_decay():
    objective = points().objective()
    groups = {g["name"]: g for g in parameter_groups(objective, lr=0.1, weight_decay=0.5)}
    ids = [id(p) for group in groups.values() for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in objective.parameters() if p.requires_grad}
    schedule = {id(p) for p in objective.schedule.parameters()}
    assert {id(p) for p in groups["schedule"]["params"]} == schedule
    assert (groups["schedule"]["weight_decay"], groups["model"]["weight_decay"]) == (0.0, 0.5)
    assert (groups["schedule"]["lr"], groups["model"]["lr"]) == (0.01, 0.1)


def test_without_a_schedule_or_a_rate_the_optimizer_decides():
    (group,) = parameter_groups(torch.nn.Linear(2, 2))
    assert "lr" not in group
    assert group["name"] == "model"
