"""The steps of deploy/Dockerfile without a container engine: `python -m tests.systems container`, as root.

Each stage is executed in a Debian of its own, debootstrap's smallest; Debian's slim image is made of the same packages
without their documentation, and has the sources of security updates, which these roots lack. The files that COPY takes
are those of a clone of this checkout's last commit that Dockerfile.dockerignore leaves. Then the image is run as
docs/deploying.md says: each run has a layer of its own over the image (overlayfs) and a network of its own, and its
process is number 1. A server is asked, used and stopped from outside, and the experiment runs.

It prints every line of the Dockerfile that was executed with its time, those that say how the image is run, every line
that was not executed and why, and the runs. Exits 1 at the first step that fails, with the end of its output.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.systems import dockerfile
from tests.systems.dockerfile import DockerfileError, Instruction, command, context, options, words
from tests.systems.root import Root, check_machine, debian
from tests.systems.script import SetupError, StepError, scratch_folder

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "bookworm"
BASE = "debian:12-slim"
ADDRESS = "tcp://127.0.0.1:7675"
# A user whom no system has: somebody's number, as `docker run --user` gives it.
SOMEBODY = "4321:4321"
STOP_S = 30.0
# What has a meaning in the options with which overlayfs is mounted.
_NOT_IN_OVERLAYS = ":,\\\"'"
_LINES_SHOWN = 40

NOT_EXECUTED = {
    "FROM": f"there is no registry here: {RELEASE}'s minbase of debootstrap in place of {BASE}",
    "EXPOSE": "it tells an engine's users about the port; the server listens at it all the same",
    "VOLUME": "there is no engine to make a volume: the runs are given folders of their own",
    "HEALTHCHECK": "its command ran once; there is no engine to repeat it by its times",
}
# A time is in one unit, as in 30s.
_TIME = r"[1-9]\d*(ms|s|m|h)"
_HEALTH_OPTIONS = {"interval": _TIME, "timeout": _TIME, "start-period": _TIME, "retries": r"[1-9]\d*"}
# They say how the image is run, and hold for the runs here.
NOTED = ("CMD", "STOPSIGNAL")


@dataclass
class Stage:
    """An image that is being built, or is."""

    root: Root
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    settings: dict[str, Instruction] = field(default_factory=dict)
    """The last CMD, HEALTHCHECK and STOPSIGNAL."""

    def inside(self, path: str) -> Path:
        """A path of the image, relative to its working folder, on this machine."""
        return self.root.folder / os.path.normpath(os.path.join(self.folder, path)).lstrip("/")

    def argv(self, words: Sequence[str], root: Root | None = None, user: str | None = None) -> list[str]:
        """What to run on this machine for a command to run as the image says."""
        # An engine sets neither of the two.
        bare = ("env", "--unset=LANG", "--unset=DEBIAN_FRONTEND")
        where = root or self.root
        return where.argv(*bare, *words, user=user or self.user, cwd=self.folder, env=self.variables, is_first=True)


class Steps:
    """The steps, one by one: what they take is printed, what they say is kept in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except (subprocess.SubprocessError, OSError) as error:
            lines = self.log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:]
            print("\n".join(lines))
            match error:
                case subprocess.CalledProcessError():
                    why = f"exit code {error.returncode}"
                case subprocess.TimeoutExpired():
                    why = f"not done within {error.timeout:.0f} s"
                case _:
                    why = str(error)
            raise StepError(f"{what}: {why}") from error
        print(f"{time.monotonic() - started:7.1f} s  {what}", flush=True)

    def call(self, argv: Sequence[str], timeout_s: float = 3600, stdin: Path = Path(os.devnull)) -> str:
        """Run a command, what it says into the log: its standard output too, which is returned."""
        with self.log.open("a") as log, stdin.open() as given:
            log.write(f"\n$ {shlex.join(argv)}\n")
            log.flush()
            done = subprocess.run(
                argv, stdin=given, stdout=subprocess.PIPE, stderr=log, text=True, timeout=timeout_s, check=False
            )
            log.write(done.stdout)
        done.check_returncode()
        return done.stdout


# --- Building -----------------------------------------------------------------------------------------------------


def copy(instruction: Instruction, stage: Stage, stages: Mapping[str, Stage], given: Path) -> None:
    """COPY: files and the contents of folders, from the context `given` or from another stage."""
    chosen, rest = options(instruction)
    if unknown := set(chosen) - {"from", "chmod"}:
        raise instruction.refusal(f"--{min(unknown)} is not known here")
    if not re.fullmatch("[0-7]{3,4}", mode := chosen.get("chmod", "755")):
        raise instruction.refusal(f"--chmod={mode} is not a number")
    if chosen.get("from", "") not in ("", *stages):
        raise instruction.refusal(f"there is no stage '{chosen['from']}'")
    *names, target = words(rest, stage.variables)
    origin = stages[chosen["from"]].root.folder if "from" in chosen else given
    to = stage.inside(target)
    into_folder = target.endswith("/")
    if not names or ((len(names) > 1 or to.is_dir()) and not into_folder):
        raise instruction.refusal("a folder to copy into ends in / here")
    for name in names:
        source = origin / name.lstrip("/")
        if source.is_dir():
            if "chmod" in chosen:
                raise instruction.refusal(f"--chmod for a folder, {name}, is not known here")
            shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True)
            continue
        goal = to / source.name if into_folder else to
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, goal)
        if "chmod" in chosen:
            goal.chmod(int(mode, 8))


def execute(instruction: Instruction, stage: Stage, stages: Mapping[str, Stage], given: Path, steps: Steps) -> None:
    """Do what an instruction other than FROM says to the image of `stage`."""
    match instruction.keyword:
        case "RUN":
            steps.call(stage.argv(command(instruction)))
        case "COPY":
            copy(instruction, stage, stages, given)
        case "ENV":
            stage.variables.update(dockerfile.pairs(instruction, variables_of(stage)))
        case "USER":
            stage.user = dockerfile.word(instruction, stage.variables)
        case "WORKDIR":
            stage.folder = os.path.join(stage.folder, dockerfile.word(instruction, stage.variables))
            stage.inside(".").mkdir(parents=True, exist_ok=True)
        case "EXPOSE":
            for port in words(instruction, stage.variables):
                if not re.fullmatch(r"[1-9]\d{,4}(/(tcp|udp))?", port) or int(port.partition("/")[0]) > 65535:
                    raise instruction.refusal(f"'{port}' is no port")
        case "VOLUME":
            words(instruction, stage.variables)
        case keyword:
            {"CMD": command, "HEALTHCHECK": health_command, "STOPSIGNAL": stop_signal}[keyword](instruction)
            stage.settings[keyword] = instruction


def health_command(instruction: Instruction) -> list[str]:
    """What a HEALTHCHECK executes."""
    chosen, rest = options(instruction)
    for name, value in chosen.items():
        if name not in _HEALTH_OPTIONS:
            raise instruction.refusal(f"--{name} is not known here")
        if not re.fullmatch(_HEALTH_OPTIONS[name], value):
            raise instruction.refusal(f"--{name}={value} is not read here")
    keyword, _, told = rest.rest.partition(" ")
    if keyword != "CMD":
        raise instruction.refusal("only CMD is known here")
    return command(dataclasses.replace(rest, rest=told.strip()))


def stop_signal(instruction: Instruction) -> signal.Signals:
    """What a STOPSIGNAL names."""
    try:
        return signal.Signals[instruction.rest]
    except KeyError:
        raise instruction.refusal(f"'{instruction.rest}' is no name of a signal") from None


def variables_of(stage: Stage) -> dict[str, str]:
    """The variables that a stage's instructions can name: the base image has a PATH."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **stage.variables}


def build(instructions: Sequence[Instruction], given: Path, stack: contextlib.ExitStack, steps: Steps) -> Stage:
    """The image of the last stage, whose root ends with `stack`."""
    stages: dict[str, Stage] = {}
    stage = None
    for instruction in instructions:
        if instruction.keyword == "FROM":
            base, *named = words(instruction, {})
            if base != BASE or (named and (len(named) != 2 or named[0] != "AS")):
                raise instruction.refusal(f"a base other than {BASE}, AS a name, is not known here")
            with steps.step(f"a root in place of {instruction}"):
                stage = Stage(stack.enter_context(debian(RELEASE, "amd64")))
            stages[named[1] if named else str(len(stages))] = stage
        elif stage is None:
            raise instruction.refusal("an instruction before FROM")
        elif instruction.keyword in NOT_EXECUTED or instruction.keyword in NOTED:
            execute(instruction, stage, stages, given, steps)
        else:
            with steps.step(str(instruction)):
                execute(instruction, stage, stages, given, steps)
    if stage is None:
        raise DockerfileError("no stage")
    if missing := {*NOTED, "HEALTHCHECK"} - stage.settings.keys():
        raise DockerfileError(f"the last stage has no {min(missing)}")
    print("Lines that hold for the runs below:")
    for keyword in NOTED:
        print(f"  {stage.settings[keyword]}")
    print("Lines that were not executed:")
    for instruction in instructions:
        if instruction.keyword in NOT_EXECUTED:
            print(f"  {instruction}\n      {NOT_EXECUTED[instruction.keyword]}")
    return stage


# --- Running ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Container:
    """An image's files and what is written over them, which is kept apart in `folder`."""

    stage: Stage
    folder: Path
    root: Root

    def argv(self, words: Sequence[str], user: str | None = None) -> list[str]:
        """What to run for a command to run in it, as process 1, with a network that only has a loopback."""
        layers = f"lowerdir={self.stage.root.folder},upperdir={self.folder}/written,workdir={self.folder}/work"
        begin = 'mount -t overlay -o "$1" overlay "$2"; ip link set lo up; shift 2; exec "$@"'
        alone = ("unshare", "--mount", "--net", "sh", "-euc", begin, "container", layers, str(self.root.folder))
        return [*alone, *self.stage.argv(words, self.root, user)]

    def exec_argv(self, words: Sequence[str], running: int) -> list[str]:
        """The same beside the command that runs as this machine's process `running`."""
        return ["nsenter", f"--target={running}", "--mount", "--net", *self.stage.argv(words, self.root)]


class Image:
    """What can be run. `volumes` are folders of this machine, and where each is in a container."""

    def __init__(self, stage: Stage, scratch: Path, steps: Steps) -> None:
        self.stage = stage
        self._scratch = scratch
        self._steps = steps

    @contextlib.contextmanager
    def container(self, volumes: Mapping[Path, str]) -> Iterator[Container]:
        """A new container, which is removed in the end."""
        with tempfile.TemporaryDirectory(prefix="container-", dir=self._scratch) as folder:
            for name in ("written", "work", "root"):
                Path(folder, name).mkdir()
            yield Container(self.stage, Path(folder), Root(Path(folder, "root"), list(volumes.items())))

    def run(
        self, words: Sequence[str], volumes: Mapping[Path, str], user: str | None = None, stdin: Path = Path(os.devnull)
    ) -> str:
        """`docker run`: the command's standard output. Raises CalledProcessError if it fails."""
        with self.container(volumes) as container:
            return self._steps.call(container.argv(words, user), stdin=stdin)

    def named_volume(self, path: str) -> Path:
        """A new volume, which an engine fills with what the image has there, with the same owner."""
        folder = Path(tempfile.mkdtemp(prefix="volume-", dir=self._scratch))
        subprocess.run(["cp", "--archive", f"{self.stage.inside(path)}/.", folder], check=True)
        return folder


def serve(image: Image, scratch: Path, steps: Steps) -> None:
    """The server of docs/deploying.md: allow a phone, calibrate, serve, ask, classify, stop."""
    data = "/var/lib/ionn"
    volumes = {image.named_volume(data): data}
    ionn = [sys.executable, "-m", "ionn"]
    phone = scratch / "phone"
    with steps.step("on the phone: ionn keygen phone"):
        steps.call([*ionn, "keygen", str(phone)])
    with steps.step("docker run --interactive ionn sh -c 'cat >>clients' <phone.public"):
        image.run(["sh", "-c", "cat >>clients"], volumes, stdin=phone.with_suffix(".public"))
    with steps.step("docker run ionn ionn calibrate --save costs.json"):
        image.run(["ionn", "calibrate", "--save", "costs.json"], volumes)
    served = command(image.stage.settings["CMD"])
    health = health_command(image.stage.settings["HEALTHCHECK"])
    number = stop_signal(image.stage.settings["STOPSIGNAL"])
    with image.container(volumes) as container, steps.log.open("a") as log:
        with steps.step(f"docker run ionn: {' '.join(served)} prints its address"):
            server = subprocess.Popen(container.argv(served), stdout=subprocess.PIPE, stderr=log, text=True)
            assert server.stdout is not None
            if not server.stdout.readline().startswith("tcp://"):
                raise subprocess.CalledProcessError(server.wait(STOP_S), served)
        try:
            process_1 = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text())
            outside = ["nsenter", f"--net=/proc/{server.pid}/ns/net"]
            with steps.step("HEALTHCHECK's command"):
                steps.call(container.exec_argv(health, server.pid))
            with steps.step("docker run ionn cat server.public >server.public"):
                public = scratch / "server.public"
                public.write_text(image.run(["cat", "server.public"], volumes))
            keys = ["--key", str(phone.with_suffix(".secret")), "--server-key", str(public)]
            with steps.step("on the phone: ionn ping"):
                print(" " * 11 + steps.call([*outside, *ionn, "ping", ADDRESS, *keys]).strip())
            for visit in ("first", "second"):
                with steps.step(f"on the phone: ionn classify --connect, {visit} visit"):
                    asked = ("classify", "chelsea", "--model", "mobilenet", "--client", "odroid-xu4", "--mbps", "80")
                    said = steps.call([*outside, *ionn, *asked, "--coding", "none", "--connect", ADDRESS, *keys])
                    stages = [line for line in said.splitlines() if line.startswith("server ")]
                    if not stages:
                        raise StepError(f"the server computed nothing:\n{said}")
                    (summary,) = (line for line in said.splitlines() if line.startswith("mobilenet: "))
                    print(f"{' ' * 11}{summary}; the server computed {len(stages)} stages")
            with steps.step(f"docker stop: {number.name} to process 1; it ends with exit code 0"):
                os.kill(process_1, number)
                code = server.wait(STOP_S)
                if code:
                    raise subprocess.CalledProcessError(code, served)
        finally:
            server.kill()
            server.wait()


def reproduce(image: Image, scratch: Path, steps: Steps, models: Sequence[str]) -> None:
    """The experiment of docs/deploying.md, by somebody whom the image does not know."""
    results = scratch / "results"
    results.mkdir()
    user, group = map(int, SOMEBODY.split(":"))
    os.chown(results, user, group)
    asked = ["reproduce", *(each for model in models for each in ("--model", model))]
    with steps.step(f"docker run --user {SOMEBODY} --volume results:/results ionn {' '.join(asked)}"):
        said = image.run(asked, {results: "/results"}, SOMEBODY)
    print("".join(f"{' ' * 11}{line}\n" for line in said.splitlines()[-3:]), end="")
    figures = sorted(path.name for path in (results / "figures").iterdir())
    report = (results / "report.html").stat()
    print(f"{' ' * 11}{len(figures)} figure files; report.html has {report.st_size} bytes and is {report.st_uid}'s")


def megabytes(folder: Path) -> int:
    """What the files in a folder occupy, in 10^6 bytes."""
    said = subprocess.run(["du", "-sxB1", folder], capture_output=True, text=True, check=True).stdout
    return round(int(said.split()[0]) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="reproduce with all models, not MobileNet alone: minutes")
    arguments = parser.parse_args()
    check_machine("amd64")
    if unusable := set(_NOT_IN_OVERLAYS) & set(tempfile.gettempdir()):
        raise SetupError(f"set TMPDIR to a folder whose path has no {' '.join(unusable)}: overlayfs cannot name it")
    with scratch_folder("ionn-container-") as scratch, contextlib.ExitStack() as stack:
        steps = Steps(scratch / "log")
        steps.log.touch()
        checkout, given = scratch / "checkout", scratch / "context"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, checkout], check=True)
        files = list(context(checkout, (checkout / "deploy" / "Dockerfile.dockerignore").read_text()))
        for path in files:
            (given / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / path, given / path)
        print(f"The context: {len(files)} files, {megabytes(given)} MB")
        print("Lines of the Dockerfile, and what they took:")
        stage = build(dockerfile.parse((checkout / "deploy" / "Dockerfile").read_text()), given, stack, steps)
        print(f"The image: {megabytes(stage.root.folder)} MB, of which /opt/ionn {megabytes(stage.inside('/opt'))}")
        print("Runs of it:")
        image = Image(stage, scratch, steps)
        serve(image, scratch, steps)
        reproduce(image, scratch, steps, () if arguments.full else ("mobilenet",))
