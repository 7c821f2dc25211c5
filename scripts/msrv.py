#!/usr/bin/env python3
"""Checks that Cargo.toml keeps its promise of a Rust version: no dependency asks for a newer one, and that
compiler takes the code, if rustup is there to bring it. With the default features first, and then with
all those whose libraries keep to it as well.

Clippy's `incompatible_msrv` reads the same promise, but knows the standard library only, not the language.

And that the oldest libraries that Cargo.toml allows will do, where a nightly is there to choose them.

Compiler and libraries come from the network. Where there is none, MILLPOND_OFFLINE=1 leaves out what needs it.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

# Not mysql, sqlx and r2d2: their libraries, in the versions of Cargo.lock, need a newer compiler.
KEPT = (
    "tracing,serde,cluster,prometheus,metrics,opentelemetry,axum,"
    "tcp,unix,postgres,redis,sqlite,pg-wired,bb8,deadpool"
)


def version(text):
    return tuple(int(part) for part in text.split("."))


def cargo(*arguments):
    command = ["cargo", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def toolchain(promised):
    """Whether rustup has that compiler, or can bring it."""
    if not shutil.which("rustup"):
        return False
    version = ["rustup", "run", promised, "rustc", "--version"]
    if subprocess.run(version, capture_output=True).returncode == 0:
        return True
    print(f"installing Rust {promised} with rustup")
    install = ["rustup", "toolchain", "install", promised, "--profile", "minimal"]
    return subprocess.run(install).returncode == 0 or left_out(f"Rust {promised} cannot be installed")


def left_out(why):
    """False where that may be for want of a network, and an end with failure anywhere else."""
    if not os.environ.get("MILLPOND_OFFLINE"):
        sys.exit(f"{why}; without a network, set MILLPOND_OFFLINE=1")
    print(why)
    return False


metadata = json.loads(cargo("metadata", "--format-version", "1", "--all-features", "--locked"))
asked = {(p["name"], p["version"]): p["rust_version"] for p in metadata["packages"]}
promised = next(p["rust_version"] for p in metadata["packages"] if p["name"] == "millpond")

for features in ("default", KEPT):
    tree = cargo(
        "tree", "--package", "millpond", "--edges", "normal,build", "--prefix", "none",
        "--format", "{p}", "--locked", "--features", features,
    )
    lines = map(str.split, tree.splitlines())
    used = {(words[0], words[1].removeprefix("v")) for words in lines if words}
    too_new = [
        f"{name} {number} asks for {asked[name, number]}"
        for name, number in sorted(used)
        if asked[name, number] and version(asked[name, number])[:2] > version(promised)[:2]
    ]
    if too_new:
        sys.exit(f"Cargo.toml promises Rust {promised}, but of {features} " + "; ".join(too_new))
    print(f"Rust {promised} is enough for all {len(used)} packages of the features: {features}")

if toolchain(promised):
    for features in ("default", KEPT):
        check = ["check", "--package", "millpond", "--lib", "--locked", "--features", features]
        check += ["--target-dir", "target/msrv"]
        subprocess.run(["rustup", "run", promised, "cargo", *check], check=True)
    print(f"Rust {promised} takes the code")
else:
    print(f"no Rust {promised}: the code is not checked with it")

# A package of its own, since the tests' libraries ask for newer ones of those that the pool shares with
# them. Not the backends: some of their libraries do not build with the oldest of what they allow.
OLDEST = """[package]
name = "oldest"
edition = "2024"
[dependencies]
millpond = { path = "../..", features = ["cluster", "tcp", "serde"] }
[workspace]
"""
if subprocess.run(["cargo", "+nightly", "--version"], capture_output=True).returncode:
    sys.exit(print("no nightly that chooses the oldest libraries: the code is not checked with them"))
oldest = pathlib.Path("target/oldest")
(oldest / "src").mkdir(parents=True, exist_ok=True)
(oldest / "Cargo.toml").write_text(OLDEST)
(oldest / "src/lib.rs").write_text("")
(oldest / "Cargo.lock").unlink(missing_ok=True)
choose = ["cargo", "+nightly", "update", "-q", "-Z", "minimal-versions"]
if subprocess.run(choose, cwd=oldest).returncode:
    sys.exit(left_out("the oldest libraries cannot be chosen: the code is not checked with them"))
# What an old derive macro is warned of is not our concern.
quiet = {**os.environ, "RUSTFLAGS": "-Awarnings"}
check = ["cargo", "check", "-q", "--target-dir", "target"]
subprocess.run(check, cwd=oldest, env=quiet, check=True)
print("the oldest libraries that Cargo.toml allows will do")
