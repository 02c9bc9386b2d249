"""What a step of each method takes, against a dense step."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.sparse_training.plan import BOTH, CASES, CHEAPER, METHODS, Run
from benchmarks.sparse_training.training import build, datasets, sparsifier


def step_times(case_name: str) -> list[dict[str, Any]]:
    """Every method's steps over dense ones, in whole trainings that take turns step by step.

    The range is over ninths of the training.
    """
    import torch
    from torch.nn import functional as F

    from prunekit.train import loader

    torch.set_num_threads(1)
    case = CASES[case_name]
    data, _ = datasets(case)
    batches = loader(data.train, case.batch_size, 0)
    total = case.epochs * len(batches)
    trainings = {}
    for method in ("dense", *METHODS):
        model = build(case, data.num_classes, 0)
        optimizer = torch.optim.SGD(
            model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        rule = None
        if method != "dense":
            own = CHEAPER[BOTH] if method == "iee" else {}  # which is its default
            rule = sparsifier(Run(case_name, method, 0, "90%", options=own), model, total)
        trainings[method] = (model, optimizer, rule)

    def timed(method: str, batch: Any) -> tuple[float, bool]:
        model, optimizer, rule = trainings[method]
        model.train()
        explores = rule is not None and rule.stage == "explore"
        images, labels = batch
        began = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()
        if rule is None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            rule.step(optimizer)
        return time.perf_counter() - began, explores

    times: dict[str, list[tuple[float, float]]] = {method: [] for method in trainings}
    every = [batch for _ in range(case.epochs) for batch in batches]
    for step, batch in enumerate(every):
        if step % (total // 9) == 0 and len(times["dense"]) < 9:
            for method in trainings:
                times[method].append((0.0, 0.0))
        for method in trainings if step % 2 else reversed(trainings):
            spent, explored = timed(method, batch)
            if step >= 5:  # the first few warm up
                whole, exploring = times[method][-1]
                times[method][-1] = whole + spent, exploring + explored * spent
    rows = []
    dense = [whole for whole, _ in times["dense"]]
    for method in METHODS:
        mine = [whole for whole, _ in times[method]]
        ratios = [own / its for own, its in zip(mine, dense, strict=True)]
        rows.append(
            {
                "case": case_name,
                "method": method,
                "dense_step_ms": 1e3 * sum(dense) / (total - 5),
                "ratio": sum(mine) / sum(dense),
                "ratio_range": [min(ratios), max(ratios)],
                "exploring_share": sum(exploring for _, exploring in times[method]) / sum(mine),
            }
        )
    return rows
