"""Breaks a copy of the crate in one place at a time, and runs the test that must notice.

What `loom-tests/mutants` and `tests/mutants` share; each has the mutants and says how to build. A
mutant is a tuple: its name, the file, the text before, the text after, the test program and the test
in it. It is one exact replacement: it is an error if the text is not found exactly once, or if the
result does not compile. It survives if the named test passes or does not come to an end.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
# How long a build, and a test, may take, in seconds.
BUILD, RUN = 600, 120


def copy_to(place, members):
    """The crate, as a workspace with no other members than these."""
    # The manifest names examples and tests, so cargo wants to see them.
    for name in ("src", "examples", "tests", *members):
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, place / name)
    shutil.copy(TOP / "Cargo.lock", place)
    names = ", ".join(f'"{member}"' for member in members)
    manifest = (TOP / "Cargo.toml").read_text()
    manifest = re.sub(r"(?m)^members = .*$", f"members = [{names}]", manifest)
    (place / "Cargo.toml").write_text(re.sub(r"(?m)^default-members = .*$", "", manifest))


def reason(output):
    """The first panic of a failed test, in a few words; not one that is part of the test."""
    said = re.findall(r"panicked at [^\n]*\n([^\n]*)", output)
    said = [words for words in said if not words.startswith("scripted")] or ["no message"]
    return said[0].split(";")[0][:60]


def call(command, place, env, limit):
    """Exit code and output of a command, which is ended, with whatever it has started, if it takes
    too long."""
    process = subprocess.Popen(command, cwd=place, env=env, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise


def select(program):
    """What makes cargo build this program only: the name of a file of tests, or of a kind."""
    return [program] if program.startswith("--") else ["--test", program]


def faults(mutants, folders):
    """What keeps mutants from being what they are called: a text that is not there exactly once, or a
    test that is in none of the folders."""
    texts = {file: (TOP / file).read_text() for _, file, *_ in mutants}
    tests = "\n".join(path.read_text() for folder in folders for path in (TOP / folder).rglob("*.rs"))
    names = set(re.findall(r"\bfn (\w+)", tests))
    for name, file, before, _, program, test in mutants:
        found = texts[file].count(before)
        if found != 1:
            yield f"{name}: found {found} times in {file}:\n{before}"
        if test.split("::")[-1] not in names:
            yield f"{name}: no test {program}::{test}"


def run(mutants, arguments, members, target, env):
    """Runs those mutants whose names have the script's argument in them, and tells of each; with
    `--check` it only looks whether their texts and tests are there.

    `arguments` follow `cargo test`; `env` is what the tests see besides the environment.
    """
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    folders = members or ["src", "tests"]
    if wanted == "--check":
        bad = list(faults(mutants, folders))
        print(*bad, f"{len(mutants)} mutants, {len(bad)} of them without their text or test", sep="\n")
        sys.exit(1 if bad else 0)
    # One for all mutants, so that only the pool and the tests are built again; and for nothing
    # else, since cargo would take a mutant for the pool itself: it tells two copies of a workspace
    # apart by no more than their files' times.
    env = {**os.environ, "RUST_BACKTRACE": "0", **env, "CARGO_TARGET_DIR": str(TOP / "target" / target)}
    chosen = [mutant for mutant in mutants if wanted in mutant[0]]
    if bad := list(faults(chosen, folders)):
        sys.exit("\n".join(bad))
    survivors, rows = [], []
    with tempfile.TemporaryDirectory(prefix="millpond-mutants-") as place:
        place = Path(place)
        copy_to(place, members)
        for name, file, before, after, program, test in chosen:
            began = time.monotonic()
            original = (place / file).read_text()
            (place / file).write_text(original.replace(before, after))
            command = ["cargo", "test", *arguments, *select(program)]
            code, output = call([*command, "--no-run"], place, env, BUILD)
            if code != 0:
                sys.exit(f"{name}: does not compile\n{output}")
            try:
                code, output = call([*command, "--", "--exact", test], place, env, RUN)
                if "running 1 test" not in output:
                    sys.exit(f"{name}: no test {program}::{test}\n{output}")
                caught = reason(output) if code != 0 else None
            except subprocess.TimeoutExpired:
                caught = None
            (place / file).write_text(original)
            seconds = time.monotonic() - began
            if caught is None:
                survivors.append(name)
            rows.append((name, f"{program}::{test}: {caught}" if caught else "SURVIVED", seconds))
            print(f"{name} | {rows[-1][1]} | {seconds:.1f}", flush=True)

    print("\n| mutant | caught by | seconds |\n|---|---|---|")
    for name, by, seconds in rows:
        print(f"| {name} | {by} | {seconds:.1f} |")
    total = sum(seconds for _, _, seconds in rows)
    print(f"\n{len(rows) - len(survivors)} of {len(rows)} mutants caught in {total:.0f} s")
    if survivors or not rows:
        sys.exit("survived: " + ", ".join(survivors) if survivors else "no such mutant")
