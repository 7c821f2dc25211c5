//! Millpond's figures, as pictures: `cargo run --release -p millpond-tools --bin report`.
//!
//! Measures, and writes four charts (SVG) and the data file that they are drawn from. With `--quick`
//! it gives a first impression; with `--data FILE` it draws again what was measured before. Read
//! `take.rs` (what is measured), `data.rs` (the data file) and `charts` (how it is drawn). The tables
//! of the README are those of `figures`, another run.

#![forbid(unsafe_code)]

mod charts;
mod data;
#[cfg(test)]
mod samples;
mod take;

use crate::data::Data;
use clap::Parser;
use millpond_bench::{CountingAllocator, Effort};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The name of the data file beside the pictures.
const DATA_FILE: &str = "bench.json";

/// Draws what the pools cost, beside a bare queue and other pools.
#[derive(Parser)]
struct Arguments {
    /// Measures less of everything: a first impression.
    #[arg(long, conflicts_with = "data")]
    quick: bool,
    /// Draws what this data file says, and measures nothing.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Where the pictures and the data file go.
    #[arg(long, value_name = "FOLDER", default_value = "docs/figures")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let data = match &arguments.data {
        Some(file) => Data::read(file)?,
        None => take::take(if arguments.quick { &Effort::QUICK } else { &Effort::FULL }),
    };
    fs::create_dir_all(&arguments.out).map_err(|error| unwritable(&arguments.out, &error))?;
    // First what took its time: the rest can be done again.
    write(&arguments.out, DATA_FILE, &data.text())?;
    for picture in charts::all(&data)? {
        write(&arguments.out, picture.file, &picture.svg)?;
    }
    Ok(())
}

fn write(folder: &Path, file: &str, text: &str) -> Result<(), String> {
    let path = folder.join(file);
    fs::write(&path, text).map_err(|error| unwritable(&path, &error))?;
    println!("{}", path.display());
    Ok(())
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be written: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pictures_of_the_readme_are_drawn_from_the_data_beside_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/figures");
        let data = Data::read(&folder.join(DATA_FILE)).expect("the data file");
        for picture in charts::all(&data).expect("pictures") {
            let kept = fs::read_to_string(folder.join(picture.file)).expect("a picture");
            assert!(kept == picture.svg, "draw {} again with --data", picture.file);
        }
    }

    #[test]
    fn to_draw_again_is_not_to_measure() {
        let parsed = Arguments::try_parse_from(["report", "--quick", "--data", "bench.json"]);
        assert!(parsed.is_err());
    }
}
