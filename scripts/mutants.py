"""Breaks a copy of the crate in one place at a time, and runs the test that must notice.

What `loom-tests/mutants` and `tests/mutants` share; each has the mutants and says how to build. A
mutant is a tuple: its name, the file, the text before, the text after, the test program and the test
in it, or several tests, and further programs with theirs. It is one exact replacement: it is an error
if the text is not found exactly once, or if the result does not compile. It survives if one of the
named tests passes or does not come to an end.
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
# What the doc of a test says before the names of its mutants.
CAUGHT = "seen to be caught:"
# The first of all: what catches it catches nothing.
UNBROKEN = "no mutant"


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


def cases(where):
    """What a mutant has behind its texts, as pairs of a program and a test."""
    return [(program, test) for program, tests in zip(where[::2], where[1::2], strict=True)
            for test in ([tests] if isinstance(tests, str) else tests)]


def select(programs):
    """What makes cargo build these programs only: the names of files of tests, or a kind."""
    return [part for program in sorted(programs)
            for part in ([program] if program.startswith("--") else ["--test", program])]


def built(output):
    """The path of each program, as cargo tells it when it has built them."""
    told = re.findall(r"Executable (?:unittests src/(lib)|tests/(\w+))\.rs \((.*)\)", output)
    return {"--lib" if lib else name: path for lib, name, path in told}


def faults(mutants, folders, told):
    """What keeps mutants from being what they are called: a text that is not there exactly once, or a
    test that is in none of the folders; and, if the tests are to have been `told` of them, a doc that does
    not name the mutant, or none at all."""
    texts = {file: (TOP / file).read_text() for _, file, *_ in mutants}
    tests = "\n".join(path.read_text() for folder in folders for path in (TOP / folder).rglob("*.rs"))
    names = set(re.findall(r"\bfn (\w+)", tests))
    docs = {name: re.sub(r"\s*///\s*", " ", doc)
            for doc, name in re.findall(r"((?: *///.*\n)*) *#\[test\]\n(?: *#\[.*\n)* *fn (\w+)", tests)}
    if told:
        yield from (f"{name}: its doc names no mutant" for name, doc in docs.items() if CAUGHT not in doc)
    for name, file, before, _, *where in mutants:
        found, title = texts[file].count(before), re.sub(r" \(\w+\)$", "", name)
        if found != 1:
            yield f"{name}: found {found} times in {file}:\n{before}"
        for program, test in cases(where):
            test = test.split("::")[-1]
            if test not in names:
                yield f"{name}: no test {program}::{test}"
            elif told and not any(f'"{words}"' in docs.get(test, "") for words in (name, title)):
                yield f"{name}: not named where {program}::{test} is"


def unbroken(mutants, told):
    """A mutant that breaks nothing, with the tests of these, which all have to pass; none for those that are
    run by themselves, as the models are."""
    tests = {case: None for _, _, _, _, *where in mutants for case in cases(where)}
    if told or not tests:
        return []
    file = mutants[0][1]
    return [(UNBROKEN, file, "", "", *(part for case in tests for part in case))]


def run(mutants, arguments, members, target, env, told=False):
    """Runs those mutants whose names have the script's argument in them, and tells of each; with
    `--check` it only looks whether their texts and tests are there.

    `arguments` follow `cargo test`; `env` is what the tests see besides the environment; `told`: the doc
    of each test names the mutants that it must notice.
    """
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    folders = members or ["src", "tests"]
    if wanted == "--check":
        bad = list(faults(mutants, folders, told))
        print(*bad, f"{len(mutants)} mutants, {len(bad)} of them without their text or test", sep="\n")
        sys.exit(1 if bad else 0)
    # One for all mutants, so that only the pool and the tests are built again; and for nothing
    # else, since cargo would take a mutant for the pool itself: it tells two copies of a workspace
    # apart by no more than their files' times.
    env = {**os.environ, "RUST_BACKTRACE": "0", **env, "CARGO_TARGET_DIR": str(TOP / "target" / target)}
    chosen = [mutant for mutant in mutants if wanted in mutant[0]]
    if bad := list(faults(chosen, folders, told)):
        sys.exit("\n".join(bad))
    # As after any other end, nothing that was started goes on, and the copy is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    survivors, rows = [], []
    with tempfile.TemporaryDirectory(prefix="millpond-mutants-") as place:
        place = Path(place)
        copy_to(place, members)
        for name, file, before, after, *where in [*unbroken(chosen, told), *chosen]:
            began = time.monotonic()
            original = (place / file).read_text()
            (place / file).write_text(original.replace(before, after))
            programs = {program for program, _ in cases(where)}
            command = ["cargo", "test", *arguments, *select(programs), "--no-run"]
            code, output = call(command, place, env, BUILD)
            if code != 0:
                sys.exit(f"{name}: does not compile\n{output}")
            paths = built(output)
            for program, test in cases(where):
                try:
                    # Not by cargo, which would look again whether there is anything to build.
                    code, output = call([place / paths[program], "--exact", test], place, env, RUN)
                    if "running 1 test" not in output:
                        sys.exit(f"{name}: no test {program}::{test}\n{output}")
                    caught = reason(output) if code != 0 else None
                except subprocess.TimeoutExpired:
                    code, caught = None, None
                if name is UNBROKEN:
                    if code != 0:
                        sys.exit(f"{program}::{test} fails without any mutant\n{output}")
                    continue
                seconds, began = time.monotonic() - began, time.monotonic()
                if caught is None and name not in survivors:
                    survivors.append(name)
                rows.append((name, f"{program}::{test}: {caught or 'SURVIVED'}", seconds))
                print(f"{name} | {rows[-1][1]} | {seconds:.1f}", flush=True)
            (place / file).write_text(original)

    print("\n| mutant | caught by | seconds |\n|---|---|---|")
    for name, by, seconds in rows:
        print(f"| {name} | {by} | {seconds:.1f} |")
    total = sum(seconds for _, _, seconds in rows)
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutants caught in {total:.0f} s")
    if survivors or not rows:
        sys.exit("survived: " + ", ".join(survivors) if survivors else "no such mutant")
