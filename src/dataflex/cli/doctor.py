"""The verb ``doctor``: versions, devices, known-broken combinations and their remedy."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

from dataflex import __version__
from dataflex.integrations.remedy import REMEDY

PACKAGES = [
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "llamafactory",
    "deepspeed",
    "bitsandbytes",
    "numpy",
    "pyarrow",
]


def doctor() -> int:
    """Print what is installed and what is wrong; return 0 when nothing is, else 2."""
    console = Console()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    found = {name: installed(name) for name in PACKAGES}
    table.add_row("dataflex", __version__)
    table.add_row("python", platform.python_version())
    for name, number in found.items():
        table.add_row(name, number or "-")
    table.add_row("devices", _devices() if found["torch"] else "-")
    console.print(table)
    problems = diagnose(found)
    for note in notes(found):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    for problem in problems:
        console.print(f"problem: {problem}", highlight=False, markup=False, soft_wrap=True)
    if not problems:
        console.print("no known problem", highlight=False)
    return 2 if problems else 0


def installed(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def diagnose(found: dict[str, str | None]) -> list[str]:
    """One sentence with a remedy for each thing that is known not to work, given the installed versions."""
    problems = []
    torch, torchaudio, factory = found.get("torch"), found.get("torchaudio"), found.get("llamafactory")
    if torch is None:
        return ["torch is not installed; run pip install torch"]
    problems += too_old(found)
    if factory is None:
        return problems
    problems += out_of_bounds("llamafactory", found)
    if torchaudio is None:
        problems.append(f"llamafactory imports torchaudio, which is not installed; run {REMEDY}")
    elif _minor(torch) != _minor(torchaudio):
        problems.append(
            f"torchaudio {torchaudio} was built for torch {_minor(torchaudio)}, not {torch}, and llamafactory imports "
            f"it; run {REMEDY}"
        )
    else:
        failure = _import_failure("llamafactory.hparams")
        if failure is not None and torch.endswith("+cpu") and not torchaudio.endswith("+cpu"):
            failure = f"torch {torch} is a CPU build, beside which torchaudio {torchaudio} may not load: {failure}"
        if failure is not None:
            problems.append(f"llamafactory cannot be imported ({failure}); run {REMEDY}")
    return problems


def notes(found: dict[str, str | None]) -> list[str]:
    """What is no mistake, and good to know."""
    said = []
    if found.get("torch") is not None and found.get("llamafactory") is None:
        said.append(
            "llamafactory is not installed: dynamic(Trainer) in Python works without it, dataflex-cli train needs it; "
            f"for that run {REMEDY}"
        )
    trl, transformers = found.get("trl"), found.get("transformers")
    if trl is not None and transformers is not None and Version(trl).major < 1 and Version(transformers).major >= 5:
        said.append(
            f"trl {trl} beside transformers {transformers} takes packages for installed that are not: importing "
            "DPOTrainer by itself may fail; LLaMA-Factory's dpo and kto stages work; for TRL alone "
            "install trl>=1.0"
        )
    return said


def too_old(found: dict[str, str | None]) -> list[str]:
    """Packages below the lowest version that we support, TRL's included where it is installed."""
    return [
        f"{problem}; run pip install --upgrade '{requirement.name}{requirement.specifier}'"
        for requirement, problem in _violations("dataflex", found, extra="trl")
    ]


def out_of_bounds(package: str, found: dict[str, str | None]) -> list[str]:
    """Installed packages that ``package`` says it does not work with."""
    return [
        f"{problem}, which DISABLE_VERSION_CHECK=1 hides and does not mend; run {REMEDY}"
        for _, problem in _violations(package, found)
    ]


def _violations(package: str, found: dict[str, str | None], extra: str = "") -> list[tuple[Requirement, str]]:
    """The requirements of an installed package, those of ``extra`` included, that ``found`` does not meet."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return []
    needed = [Requirement(line) for line in lines]
    return [
        (requirement, f"{requirement.name} {number} is installed, {package} needs {requirement.specifier}")
        for requirement in needed
        if (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
        and (number := found.get(requirement.name)) is not None
        and not requirement.specifier.contains(number, prereleases=True)
    ]


def _minor(number: str) -> str:
    return ".".join(number.split("+")[0].split(".")[:2])


def _import_failure(module: str) -> str | None:
    """The last line of an import's traceback, in a process of its own, or None when it succeeds."""
    result = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return " ".join(lines[-1].split())[:300] if lines else f"exit code {result.returncode}"


def _devices() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"torch cannot be imported: {error}"
    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
