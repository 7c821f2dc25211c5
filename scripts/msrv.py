#!/usr/bin/env python3
"""Checks that no dependency asks for a newer Rust than Cargo.toml promises: none of the default features,
nor of those optional ones that keep to it as well. Then that compiler checks the default features, if rustup
is there to bring it.

The code of the other features is held to it by clippy's `incompatible_msrv`, which reads the same promise.
"""

import json
import shutil
import subprocess
import sys


def version(text):
    return tuple(int(part) for part in text.split("."))


def cargo(*arguments):
    command = ["cargo", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


metadata = json.loads(cargo("metadata", "--format-version", "1", "--all-features", "--locked"))
asked = {(p["name"], p["version"]): p["rust_version"] for p in metadata["packages"]}
promised = next(p["rust_version"] for p in metadata["packages"] if p["name"] == "millpond")

for features in ("default", "axum", "metrics", "opentelemetry"):
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


def toolchain():
    """Whether rustup has that compiler, or can bring it."""
    if not shutil.which("rustup"):
        return False
    version = ["rustup", "run", promised, "rustc", "--version"]
    if subprocess.run(version, capture_output=True).returncode == 0:
        return True
    print(f"installing Rust {promised} with rustup")
    install = ["rustup", "toolchain", "install", promised, "--profile", "minimal"]
    return subprocess.run(install).returncode == 0


if not toolchain():
    sys.exit(print(f"no rustup that brings Rust {promised}: the code is not checked with it"))
check = ["check", "--package", "millpond", "--lib", "--locked", "--target-dir", "target/msrv"]
subprocess.run(["rustup", "run", promised, "cargo", *check], check=True)
print(f"Rust {promised} compiles the default features")
