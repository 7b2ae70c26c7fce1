//! `kiln dev bench flash`: how quickly an image is written and read back, beside `dd` on the same medium.
//!
//! An image of noise, which no device makes smaller, is written past the page cache onto a file that is as large as it: by `dd` with
//! `oflag=direct` and the same blocks, then by what `kiln flash` does with a disk. Both end with a flush. Then both read it back: `dd` into
//! nothing, kiln to compare it. Runs of both alternate, so that what else the machine does hits both; medians count, and of these ratios.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::deploy::flash::claim::enough_cores;
use crate::deploy::flash::journal::Journal;
use crate::deploy::flash::{BlockDevice, Facts, Options, Phase, Source, Watch, write};
use crate::exec::Tool;
use crate::image::disk::{self, Slot};
use crate::image::gpt::{self, Wanted};
use crate::scenario::seeded::Stream;
use crate::sys;

/// Seconds of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// To the end of the flush behind the last byte.
    pub write: f64,
    /// Of reading back after that.
    pub read: f64,
}

/// What the benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Bytes of the image.
    pub size: u64,
    /// Whether the program was compiled without optimisation.
    pub debug: bool,
    /// Whether reading back began while more was written.
    pub overlap: bool,
    /// What `dd` needed, in the order of the runs.
    pub dd: Vec<Seconds>,
    /// What kiln needed.
    pub kiln: Vec<Seconds>,
    /// Rate of writing by that of `dd`.
    pub write: f64,
    /// Rate of writing and reading back by that of `dd`.
    pub whole: f64,
}

struct Nobody;

impl Watch for Nobody {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// Measures `runs` times with an image of `size` MiB, all of it in `folder`, on whose medium it lies.
pub fn bench(folder: &Path, size: u64, runs: usize) -> Result<Results> {
    let place = tempfile::Builder::new().prefix("kiln-bench-").tempdir_in(folder)?;
    let image = place.path().join("image");
    let facts = image_of_noise(place.path(), &image, size)?;
    let target = place.path().join("disk");
    // Filled once: the first write of a block costs a file system more than the next.
    fs::copy(&image, &target)?;
    let overlap = enough_cores();
    let (mut dd, mut kiln) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        sys::check_interrupt()?;
        dd.push(by_dd(&image, &target)?);
        kiln.push(by_kiln(&image, facts, &target, overlap)?);
    }
    let of = |runs: &[Seconds], what: fn(&Seconds) -> f64| super::middle(runs.iter().map(what).collect());
    let ratio = |what: fn(&Seconds) -> f64| of(&dd, what) / of(&kiln, what);
    let (write, whole) = (ratio(|run| run.write), ratio(|run| run.write + run.read));
    Ok(Results { size: facts.size, debug: cfg!(debug_assertions), overlap, dd, kiln, write, whole })
}

fn image_of_noise(folder: &Path, image: &Path, mib: u64) -> Result<Facts> {
    let noise = folder.join("noise");
    let mut stream = Stream::new(mib, "bench flash");
    let mut out = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(&noise)?);
    for _ in 0..mib << 17 {
        std::io::Write::write_all(&mut out, &stream.number().to_le_bytes())?;
    }
    drop(out);
    let guid = gpt::ROOT_X86_64;
    let partition = Wanted { kind: gpt::ROOT_X86_64, guid, name: "noise".to_owned(), size: 0, attributes: 0 };
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(image)?;
    let written = disk::write(guid, 512, &[Slot { partition, content: noise.clone() }], file.file())?;
    fs::remove_file(&noise)?;
    Ok(Facts { digest: written.digest, size: written.table.size, epoch: 0 })
}

fn by_dd(image: &Path, target: &Path) -> Result<Seconds> {
    let option = |word: &str, path: &Path| {
        let mut option = std::ffi::OsString::from(word);
        option.push(path);
        option
    };
    let time = |args: [std::ffi::OsString; 2], more: &[&str]| -> Result<f64> {
        let dd = Tool::host("dd").command().args(args).args(["bs=4M", "status=none"]).args(more);
        let began = Instant::now();
        dd.run().context("dd, without which there is nothing to compare with")?;
        Ok(began.elapsed().as_secs_f64())
    };
    let write = time([option("if=", image), option("of=", target)], &["oflag=direct", "conv=notrunc,fsync"])?;
    let read = time([option("if=", target), "of=/dev/null".into()], &["iflag=direct"])?;
    Ok(Seconds { write, read })
}

fn by_kiln(image: &Path, facts: Facts, target: &Path, overlap: bool) -> Result<Seconds> {
    let source = Source::open(image, facts)?;
    let device = BlockDevice::in_file(target)
        .with_context(|| format!("writing past the page cache in {}", target.display()))?;
    let options = Options { overlap, ..Options::default() };
    let began = Instant::now();
    let done = write(&device, "the file", source, &options, &mut Journal::none(), &Nobody)?;
    // What comes before and after counts as writing.
    Ok(Seconds { write: began.elapsed().as_secs_f64() - done.verify_seconds, read: done.verify_seconds })
}

impl Results {
    /// The table and the ratios as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{:<6} {:>5} {:>12} {:>12}", "", "runs", "write MB/s", "read MB/s")];
        for (name, runs) in [("dd", &self.dd), ("kiln", &self.kiln)] {
            let rate = |what: fn(&Seconds) -> f64| {
                self.size as f64 / 1e6 / super::middle(runs.iter().map(what).collect()).max(1e-6)
            };
            let mut line =
                format!("{name:<6} {:>5} {:>12.0} {:>12.0}", runs.len(), rate(|r| r.write), rate(|r| r.read));
            if name == "kiln" && self.overlap {
                // What is left is little, and its rate says nothing.
                line.truncate(25);
                let _ = write!(line, "{:>13}", "meanwhile");
            }
            lines.push(line);
        }
        lines.push(format!(
            "kiln / dd: {:.2} writing, {:.2} writing and reading back",
            self.write, self.whole
        ));
        let build = if self.debug { "unoptimised program" } else { "optimised program" };
        lines.push(format!("{} MiB of noise, medians, {build}", self.size >> 20));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_write_the_same_and_the_table_says_how_quickly() {
        // Memory has no way past itself on older kernels; the folder of the build is on a disk.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let results = bench(&folder, 8, 1).unwrap();
        assert_eq!((results.size >> 20, results.dd.len(), results.kiln.len()), (10, 1, 1));
        assert!(results.write > 0.0 && results.whole > 0.0, "{results:?}");
        let seconds = |write, read| vec![Seconds { write, read }];
        let results = Results {
            size: 1 << 30,
            debug: true,
            overlap: false,
            dd: seconds(1.0, 1.0),
            kiln: seconds(1.25, 2.0),
            write: 0.8,
            whole: 0.62,
        };
        insta::assert_snapshot!(results.lines().join("\n"), @r"
                runs   write MB/s    read MB/s
        dd         1         1074         1074
        kiln       1          859          537
        kiln / dd: 0.80 writing, 0.62 writing and reading back
        1024 MiB of noise, medians, unoptimised program
        ");
        let results = Results { overlap: true, ..results };
        assert!(results.lines()[2].ends_with("859    meanwhile"), "{:?}", results.lines());
    }
}
