"""A pruned or sparse model on disk: plans as JSON and ``model.safetensors``, no pickle anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit.core.plan import Base, ChannelPlan
from prunekit.core.run_folder import PLAN, SPARSITY, WEIGHTS, is_run, is_sparse
from prunekit.core.sparsity import SparsityPlan
from prunekit.core.target import package_version
from prunekit.networks.build import BuiltModel, build, is_library, rebuild
from prunekit.networks.folding import computes_weights, folded_blocks, reparameterize
from prunekit.networks.running import unwrapped
from prunekit.networks.slimming import model_fingerprint, slim
from prunekit.networks.weights import load_weights
from prunekit.networks.zeros import verify
from prunekit.support.errors import FileError, ModelError, UsageError
from prunekit.support.files import replacing, sha256_file

_RUN = "run:"
"""In front of a base that is a run folder itself, by its path from the run that names it."""


def save(
    run: str | Path,
    small: nn.Module,
    plan: ChannelPlan | SparsityPlan,
    base: str,
    arguments: dict[str, int] | None = None,
    input_shapes: tuple[tuple[int, ...], ...] = (),
    inputs: str = "",
) -> None:
    """Write the network's weights and its plan into the folder ``run``.

    A `SparsityPlan` is compared with the weights first (ModelError where they differ).

    ``base`` names the dense model (``torchvision:resnet50``, ``path/file.py:factory``, a run
    folder, ...) and ``arguments`` what its factory was called with. ``inputs`` are what it
    takes, as ``--input`` has it, where that is more than shapes. Where ``small`` has folded
    blocks (:func:`prunekit.reparameterize`), loading folds that model's too.
    """
    if not isinstance(plan, ChannelPlan | SparsityPlan):
        raise UsageError(f"`plan` must be a ChannelPlan or a SparsityPlan, not {plan!r}")
    run, small = Path(run), unwrapped(small)
    if isinstance(plan, ChannelPlan):
        _check_fits(small, plan)
        (run / SPARSITY).unlink(missing_ok=True)  # of what was saved there before
    else:
        verify(small, plan)
        plan.save(run / SPARSITY)
        plan = ChannelPlan(model_fingerprint(small), keep={}, cuts={}, sizes={})
    save_weights(small, run / WEIGHTS, lambda: _check_base(small, plan, base, arguments or {}))
    record = Base(
        spec=_from_run(run, base) if is_run(base) else base,
        arguments=arguments or {},
        weights_sha256=sha256_file(run / WEIGHTS),
        input_shapes=input_shapes,
        inputs=inputs,
        versions={name: package_version(name) for name in ("prunekit", "torch", "torchvision")},
        reparameterized=bool(folded_blocks(small)),
    )
    replace(plan, base=record).save(run / PLAN)


def _check_fits(small: nn.Module, plan: ChannelPlan) -> None:
    """Raise UsageError where ``small`` cannot be what slimming by ``plan`` left."""
    name = type(small).__name__
    modules = dict(small.named_modules())
    gone = tuple(f"{block}." for block in plan.removed)
    remaining = (module for module in plan.cuts if not f"{module}.".startswith(gone))
    if lacking := next((module for module in remaining if module not in modules), None):
        raise UsageError(
            f"the plan cuts {lacking!r}, which {name} does not have; trace, slim and save the "
            "network inside of a wrapper such as DataParallel"
        )
    if (plan.cuts or plan.removed) and model_fingerprint(small) == plan.fingerprint:
        raise UsageError(f"{name} is the dense network; save pk.slim(model, plan)")


def _check_base(small: nn.Module, plan: ChannelPlan, base: str, arguments: dict[str, int]) -> None:
    """Raise UsageError where ``small`` could not be built again from its base and its plan.

    Of a base in the user's own code, which is not run for this, nothing is known.
    """
    runs = base_runs(base)
    root = ChannelPlan.load(runs[-1] / PLAN).base if runs else None
    if not is_library(root.spec if root else base):
        return
    rng = torch.get_rng_state()
    folded = bool(folded_blocks(small))  # folding computes with values
    structure = load(base) if runs else _structure(base, arguments, values=folded)
    if folded and model_fingerprint(structure) != plan.fingerprint:
        structure = reparameterize(structure)
    torch.set_rng_state(rng)
    if model_fingerprint(structure) != plan.fingerprint:
        raise UsageError(
            f"the plan is not of {base} as it is built with {arguments or 'no arguments'}; of a "
            "network that was slimmed twice, save first_plan.then(second_plan), or name the "
            "folder of the first as `base`"
        )


def _structure(base: str, arguments: dict[str, int], *, values: bool) -> nn.Module:
    """The dense network; unless it needs ``values``, without them, which takes no time."""
    if values:
        return rebuild(base, arguments)
    try:
        with torch.device("meta"):
            return rebuild(base, arguments)
    except (RuntimeError, NotImplementedError):  # it computes with values while it is built
        return rebuild(base, arguments)


def save_weights(module: nn.Module, path: Path, check: Callable[[], None] = lambda: None) -> None:
    """All parameters and buffers as safetensors, atomically; not where ``check`` refuses it."""
    entries = module.state_dict()
    if strange := next((n for n, t in entries.items() if not isinstance(t, Tensor)), None):
        raise ModelError(
            f"{type(module).__name__} has {strange}, which is no tensor and cannot be saved; "
            "its get_extra_state() is in the way"
        )
    state = {n: t.detach().cpu().contiguous().clone() for n, t in entries.items()}
    with replacing(path) as temporary:
        try:
            save_file(state, str(temporary))
        except SafetensorError as error:
            raise FileError(f"cannot write {path}: {error}") from error
        check()


def load(run: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """The slim network of a run folder, in evaluation mode.

    The dense structure comes from torchvision, timm or the zoo as the plan says. A plan that
    names a Python factory is not trusted to run it: pass the dense ``model`` or its spec.
    A run pruned from another run needs that one too. Where the pruned network's blocks were folded,
    those of the dense one are, in a copy; ``model`` may also be folded already. Damaged or edited
    files are named in the error.
    """
    return _load(Path(run), model, ())


def _load(run: Path, model: nn.Module | str | None, opened: tuple[Path, ...]) -> nn.Module:
    """``opened`` are the runs made from this one that led here."""
    if run.resolve() in opened:
        raise FileError(
            f"{run / PLAN} is damaged: the run is, over its base runs, made from itself"
        )
    plan = ChannelPlan.load(run / PLAN)
    if plan.base is None:
        raise FileError(f"{run / PLAN} does not say which model it is for; pass `model`")
    weights = run / WEIGHTS
    if not weights.is_file():
        raise FileError(f"no {WEIGHTS} in {run}; is it a finished run folder?")
    if sha256_file(weights) != plan.base.weights_sha256:
        raise FileError(f"{weights} was edited or damaged: its checksum does not match plan.json")
    small = slim(_dense(run, plan, plan.base, model, (*opened, run.resolve())), plan)
    load_weights(small, weights, as_saved=True)
    if is_sparse(run):
        try:
            verify(small, SparsityPlan.load(run / SPARSITY))
        except ModelError as error:
            raise FileError(f"{run / SPARSITY} is not of {weights}: {error}") from error
    return small.eval()


def base_runs(run: str | Path) -> list[Path]:
    """``run`` and the runs that it was made from, the nearest first; empty if it is none."""
    current, chain = Path(run).resolve(), list[Path]()
    while is_run(current) and current not in chain:
        chain.append(current)
        base = ChannelPlan.load(current / PLAN).base
        if base is None or not base.spec.startswith(_RUN):
            break
        current = (current / base.spec.removeprefix(_RUN)).resolve()
    return chain


def _from_run(run: Path, base: str) -> str:
    path = os.path.relpath(Path(base).resolve(), run.resolve())
    return f"{_RUN}{Path(path).as_posix()}"


def _dense(
    run: Path,
    plan: ChannelPlan,
    base: Base,
    model: nn.Module | str | None,
    opened: tuple[Path, ...],
) -> nn.Module:
    rng = torch.get_rng_state()
    dense = _built(run, base, model, opened)
    if base.reparameterized and (
        model_fingerprint(dense) != plan.fingerprint or computes_weights(dense)
    ):
        dense = reparameterize(dense)
    torch.set_rng_state(rng)  # loading a file is no reason for other random numbers
    if model is None and is_library(base.spec) and model_fingerprint(dense) != plan.fingerprint:
        raise _other_structure(run, base)
    return dense


def _other_structure(run: Path, base: Base) -> ModelError | FileError:
    """Why a library's model is not the one that a plan is of: its version, or the plan."""
    made, now = base.versions.get("torchvision"), package_version("torchvision")
    if made == now and base.spec.startswith("torchvision:"):
        return FileError(
            f"{run / PLAN} is not a plan of {base.spec}, whose structure differs; of a network "
            "that was slimmed twice, name the run of the first as `base` when it is saved"
        )
    then = f" (torchvision {made or 'unknown'} then, {now} now)" if "torch" in base.spec else ""
    return ModelError(
        f"{base.spec} is not built here as it was when {run} was made{then}: its structure differs"
    )


def _built(
    run: Path, base: Base, model: nn.Module | str | None, opened: tuple[Path, ...]
) -> nn.Module:
    """The dense structure as it was built, before anything in it was folded."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str) and is_run(model):
        return load(model)
    if base.spec.startswith(_RUN):  # pruned again; `model` is for the first of the runs
        folder = (run.resolve() / base.spec.removeprefix(_RUN)).resolve()
        if not is_run(folder):
            raise FileError(
                f"base run {folder} of {run} not found; put it back, or pass it as `model`"
            )
        return _load(folder, model, opened)
    if isinstance(model, str):
        return rebuild(model, base.arguments)
    if not is_library(base.spec):
        raise UsageError(
            f"{run} was made from {base.spec!r}, which is code that a file may not start by "
            "itself; pass `model` (on the command line --base) to say that you trust it"
        )
    return rebuild(base.spec, base.arguments)


def saved_input(path: str | Path) -> str | None:
    """The input that a run folder was made with, such as 1x3x32x32; None of anything else."""
    base = ChannelPlan.load(Path(path) / PLAN).base if is_run(path) else None
    if base is None or not base.input_shapes:
        return None
    return base.inputs or ",".join("x".join(map(str, shape)) for shape in base.input_shapes)


def open_model(spec: str, base: str | None = None, **options: Any) -> BuiltModel:
    """:func:`prunekit.networks.build.build`, which also takes a run folder.

    ``base`` is the dense model of a run that was made from the user's own code.
    """
    if is_run(spec):
        if options.get("pretrained"):
            raise UsageError(f"`--pretrained` does not go with the run folder {spec}")
        return BuiltModel(load(spec, base), str(spec))
    if base is not None:
        raise UsageError(f"`base` is for a MODEL that is a run folder, and {spec} is none")
    if Path(spec).is_dir():
        raise ModelError(f"{spec} is a folder without {PLAN}, not a finished run")
    return build(spec, **options)
