#!/usr/bin/env python3
"""Make the project's virtual environment, or bring it up to date; instant when there is no need.

    python3 tools/make_venv.py [--venv .venv] [--torch auto|cpu|cuda]

`make demo`, `make test` and `make lint` call this first. It needs nothing but Python 3.11.

What is installed is fixed by pyproject.toml and constraints/lock.txt. The build of torch is chosen
for the machine: the CUDA build where `nvidia-smi` lists a device, the CPU build elsewhere. A stamp
in the environment records what it was made from. It says "installing" until everything has worked,
so an interrupted attempt is recognised and done again from nothing.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints" / "lock.txt"
SHIM = ROOT / "wholegrain" / "torchvision_shim.py"
OLDEST_PYTHON = (3, 11)
STAMP = "wholegrain-setup.json"
SIGNS = {STAMP, f"{STAMP}.new", "pyvenv.cfg"}  # any of them makes a folder an environment
# Only used where the index that pip is configured with has no CPU build.
PUBLIC_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INSTALLING, COMPLETE = "installing", "complete"


class SetupError(Exception):
    """Something the user has to mend; the message says how."""


def main(argv=None):
    """Parse the command line and make the environment; 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # As text: to Path an empty name is the current folder.
    parser.add_argument("--venv", default=str(ROOT / ".venv"))
    parser.add_argument("--torch", choices=["auto", "cpu", "cuda"], default="auto")
    args = parser.parse_args(argv)
    try:
        make(folder_of(args.venv), args.torch)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 2
    return 0


def folder_of(name):
    """The folder that --venv names; never one that holds the project itself."""
    if not name.strip():
        raise SetupError(
            "--venv is empty; name a folder for the environment: make VENV=.venv, or leave VENV out"
        )
    venv = Path(name).absolute()
    where = venv.resolve()
    if where == ROOT or where in ROOT.parents:
        raise SetupError(
            f"--venv is {name!r}, which is the project's own folder {ROOT} or one above it; name a "
            "folder for the environment alone: make VENV=.venv"
        )
    return venv


def make(venv, torch_choice):
    """Bring `venv` to the state that the project's files ask for."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"Python 3.11 or newer is needed and this is {sys.version.split()[0]}. Install one "
            "(`apt-get install python3.11 python3.11-venv`) and name it: make PYTHON=python3.11"
        )
    with one_at_a_time():
        refuse_foreign(venv)
        stamp = read_stamp(venv)
        build = choose_build(torch_choice, stamp)
        wanted = {"state": COMPLETE, "torch": build, "inputs": fingerprint()}
        if stamp == wanted:
            return
        if stamp.get("state") == INSTALLING or not has_pip(venv):
            create(venv)
        write_stamp(venv, {"state": INSTALLING})
        say(f"installing into {venv} with the {build.upper()} build of torch; this takes minutes")
        install(venv, build)
        install_shim(venv)
        check(venv)
        write_stamp(venv, wanted)
        say(f"ready: {venv}")


@contextlib.contextmanager
def one_at_a_time():
    """Of two makes started at once the second waits, and then has nothing left to do."""
    repository = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(repository, fcntl.LOCK_EX)
        yield
    finally:
        os.close(repository)


def say(message):
    """Progress for people, on stderr so that it never mixes with a program's output."""
    print(f"set-up: {message}", file=sys.stderr, flush=True)


# --- what is wanted, and what is there ------------------------------------------------------------


def fingerprint():
    """Hash of everything that decides what gets installed."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # Settings of the linter or of pytest live in the same file and install nothing.
    installs = [project["build-system"], project["project"], project["tool"]["setuptools"]]
    digest = hashlib.sha256(json.dumps(installs, sort_keys=True).encode())
    for path in (LOCK, SHIM, Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(f"{sys.version_info[:2]} {ROOT}".encode())  # the editable install points at ROOT
    return digest.hexdigest()


def refuse_foreign(venv):
    """A slip of the hand must not empty, or install into, a folder of something else.

    An environment is known by our stamp or by the `pyvenv.cfg` of Python's own venv.
    """
    remedy = "name a new or empty folder: make VENV=.venv"
    if not venv.is_dir():
        if venv.exists() or venv.is_symlink():
            raise SetupError(f"--venv is {str(venv)!r}, which is no folder; {remedy}")
        return
    names = sorted(os.listdir(venv))
    if names and not SIGNS.intersection(names):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise SetupError(
            f"--venv is {str(venv)!r}, which is no virtual environment (it has no pyvenv.cfg) and "
            f"holds {shown}; nothing there was touched; {remedy}"
        )


def read_stamp(venv):
    """The environment's stamp, {} where there is none that can be read."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv, stamp):
    """Replace the stamp in one step: it is either the old one or the new one."""
    aside = venv / f"{STAMP}.new"
    aside.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    aside.replace(venv / STAMP)


def choose_build(torch_choice, stamp):
    """'cpu' or 'cuda'; `auto` keeps what a finished environment has."""
    if torch_choice != "auto":
        return torch_choice
    if stamp.get("state") == COMPLETE and stamp.get("torch") in ("cpu", "cuda"):
        return stamp["torch"]
    return "cuda" if has_nvidia_device() else "cpu"


def has_nvidia_device():
    """Whether the driver's own tool lists at least one device."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def python_of(venv):
    """The environment's interpreter."""
    return venv / "bin" / "python"


def has_pip(venv):
    """Whether there is an environment of this Python that can be installed into."""
    same = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    try:
        asked = subprocess.run([python_of(venv), "-c", same], capture_output=True, check=False)
    except OSError:
        return False
    return asked.returncode == 0


# --- making it ------------------------------------------------------------------------------------


def create(venv):
    """A new, empty environment with pip in the place of the one that was there, if any."""
    # The Python beneath an activated environment, which may be the very one to be cleared.
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    bundled = importlib.util.find_spec("ensurepip") is not None
    # Debian and Ubuntu move ensurepip into a package of its own. A pip of the system can stand in.
    if not bundled and importlib.util.find_spec("pip") is None:
        package = f"python3.{sys.version_info[1]}-venv"
        sudo = "" if os.geteuid() == 0 else "sudo "
        raise SetupError(
            f"{python} has neither ensurepip nor pip: Debian and Ubuntu keep them in "
            f"packages of their own. Run `{sudo}apt-get install {package}` (or python3-venv) and "
            "then the same command again."
        )
    venv.mkdir(parents=True, exist_ok=True)
    write_stamp(venv, {"state": INSTALLING})
    clear(venv)
    command = [python, "-m", "venv", str(venv)]
    if bundled:
        run(command, "the environment could not be created")
        return
    run([*command, "--without-pip"], "the environment could not be created")
    borrowed = [python, "-m", "pip", "--python", str(python_of(venv))]
    run([*borrowed, "install", "-qq", "pip"], "pip could not be installed")


def clear(venv):
    """Remove everything but the stamp: if this is interrupted, the next run has to know."""
    for entry in venv.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != STAMP:
            entry.unlink()


def install(venv, build):
    """The project in editable form with its development tools, every version from the lock file."""
    pip = [str(python_of(venv)), "-m", "pip", "install"]
    run(
        [*pip, "-qq", "-c", str(LOCK), *torch_arguments(pip, build), "-e", f"{ROOT}[dev]"],
        "pip could not install the project (its own message stands above)",
    )


def torch_arguments(pip, build):
    """What to tell pip, besides the lock file, to get the wanted build of torch and torchvision."""
    torch, torchvision = locked("torch"), locked("torchvision")
    if build == "cuda":
        # === compares the text, so a CPU build offered beside it (2.x.y+cpu) does not match.
        return [f"torch==={torch}", f"torchvision==={torchvision}"]
    cpu = [f"torch=={torch}+cpu", f"torchvision=={torchvision}+cpu"]
    if not offered(pip, cpu[0]):
        return ["--extra-index-url", PUBLIC_CPU_INDEX, *cpu]
    # Without a CPU build of torchvision the usual one does: torchvision_shim is for this case.
    return cpu if offered(pip, cpu[1]) else [cpu[0], f"torchvision=={torchvision}"]


def offered(pip, requirement):
    """Whether pip, as it is configured on this machine, finds this very build."""
    probe = [*pip, "--quiet", "--dry-run", "--no-deps", "--ignore-installed", requirement]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def locked(name):
    """The version that the lock file gives for a package."""
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        package, separator, version = line.partition("==")
        if separator and package == name:
            return version.strip()
    raise SetupError(f"{LOCK} has no line '{name}==VERSION'; add one")


def install_shim(venv):
    """Have the torchvision hook in place from the interpreter's start, for `accelerate` and others.

    A copy under another name, so that starting Python does not import the package.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = venv / "lib" / version / "site-packages"
    name = "_wholegrain_torchvision_shim"
    shutil.copyfile(SHIM, packages / f"{name}.py")
    (packages / f"{name}.pth").write_text(f"import {name}; {name}.install()\n", encoding="utf-8")


def check(venv):
    """The imports on which everything stands, in a fresh interpreter."""
    imports = "import torch, torchvision.transforms.v2, timm, wholegrain"
    run([str(python_of(venv)), "-c", imports], "installed, but the first imports fail")


def run(command, failure):
    """Run a step; its own output stays visible."""
    if subprocess.run(command, check=False, cwd=ROOT).returncode != 0:
        raise SetupError(f"{failure}: {' '.join(map(str, command))}")


if __name__ == "__main__":
    sys.exit(main())
