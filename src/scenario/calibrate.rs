//! How much longer guests take here than on the machine that limits are written for.
//!
//! A limit in a scenario is what something may take under KVM on a machine that is not busy. What a guest takes under TCG depends on
//! the emulator, on the host's CPU and on what else runs there; so it is measured, by a guest. It does the same few
//! instructions again and again (arithmetic, and memory on x86) and says so by a byte each time. kiln counts for [`SAMPLE`]
//! how many come. [`Calibration::slowdown`] is [`tcg_rate`] over that rate, times [`TCG_BOOT`]: how much longer a boot takes under
//! TCG than under KVM where that rate was measured. So a CPU half as fast, or one that another program has half of, gives twice the slowdown,
//! and under KVM, where the guest is several times faster, there is none.
//!
//! Nodes that boot at once share the host's CPUs; [`Calibration::crowd`] says how much that costs.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fs_err as fs;

use crate::arch::Arch;
use crate::error::{Failure, Kind};
use crate::exec::Tool;
use crate::qemu::accel::{self, Accel};

/// How long the guest is watched.
const SAMPLE: Duration = Duration::from_millis(800);
/// How long it may take until the guest begins: QEMU itself starts in a fifth of a second on an idle machine.
const START: Duration = Duration::from_secs(20);
/// How often its bytes are counted.
const STEP: Duration = Duration::from_millis(10);

/// A node under KVM, from power-on until it is ready.
pub const KVM_BOOT: Duration = Duration::from_millis(5500);
/// CPUs that a booting node of two keeps busy, on average: 45 s of CPU time in 27 s.
const BOOT_CPUS: f64 = 1.6;
/// How much longer a boot takes under TCG at [`tcg_rate`].
const TCG_BOOT: f64 = 5.0;

/// Bytes per second of the guest under TCG on the machine where a node booted in 27 s, when nothing else ran there. On the same
/// machine with 13 others running it was 150 at first, and a node booted in 97 s.
fn tcg_rate(arch: Arch) -> f64 {
    match arch {
        Arch::Amd64 => 690.0,
        Arch::Arm64 => 1050.0,
    }
}

/// The worst that is believed: a guest that got next to no time says little about the next minutes.
const MOST: f64 = 60.0;

/// What was measured of an accelerator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// How guest code is run.
    pub accel: Accel,
    /// CPUs of the host that kiln may use.
    pub cpus: u32,
    /// How much longer one guest takes than under KVM on a machine that is not busy; at least 1.
    pub slowdown: f64,
}

impl Calibration {
    /// Measures `accel` for guests of `arch`, with the emulator of the tool tree at `root`, in about a second. Measured once in
    /// a process.
    ///
    /// # Errors
    /// [`Kind::Tool`] when the guest says nothing; Ctrl-C.
    pub fn measure(root: &Path, arch: Arch, accel: Accel, cpus: u32) -> Result<Self, Failure> {
        static KNOWN: Mutex<Vec<(Arch, Accel, f64)>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(a, b, _)| (*a, *b) == (arch, accel)).map(|(_, _, rate)| *rate);
        let rate = match found {
            Some(rate) => rate,
            None => {
                let rate = rate(root, arch, accel)?;
                known.push((arch, accel, rate));
                rate
            }
        };
        Ok(Calibration { accel, cpus, slowdown: slowdown(arch, rate) })
    }

    /// How much longer everything takes while `nodes` are busy at once, since they share the host's CPUs; at least 1.
    pub fn crowd(&self, nodes: usize) -> f64 {
        (nodes as f64 * BOOT_CPUS / f64::from(self.cpus.max(1))).max(1.0)
    }

    /// What limits are multiplied by while `nodes` are on.
    pub fn factor(&self, nodes: usize) -> f64 {
        self.slowdown * self.crowd(nodes)
    }

    /// How long `nodes` take to boot at once.
    pub fn boot(&self, nodes: usize) -> Duration {
        KVM_BOOT.mul_f64(self.factor(nodes))
    }
}

fn slowdown(arch: Arch, rate: f64) -> f64 {
    (TCG_BOOT * tcg_rate(arch) / rate.max(f64::MIN_POSITIVE)).clamp(1.0, MOST)
}

/// Bytes per second of the guest.
fn rate(root: &Path, arch: Arch, accel: Accel) -> Result<f64, Failure> {
    let wrong = |what: String| Failure::new(Kind::Tool, format!("measuring {}: {what}", accel.word()));
    let io = |error: std::io::Error| wrong(error.to_string());
    let emulator = Tool::from_tree(root, crate::qemu::emulator(arch))?;
    let folder = tempfile::Builder::new().prefix("kiln-speed-").tempdir().map_err(io)?;
    let (guest, answer) = (folder.path().join("guest.bin"), folder.path().join("answer"));
    fs::write(&guest, guest_bytes(arch)).map_err(io)?;
    let mut child = accel::trial(root, &emulator, arch, accel, &guest, &answer).spawn()?;
    let count = || fs::metadata(&answer).map_or(0, |meta| meta.len());
    let begin = Instant::now();
    // The first bytes come while QEMU is still starting its threads.
    while count() < 3 {
        if let Some(status) = child.wait(STEP)? {
            return Err(wrong(format!("its guest ended ({status})")).hint(child.stderr()));
        }
        if begin.elapsed() > START {
            return Err(
                wrong(format!("its guest said nothing in {} s", START.as_secs())).hint(child.stderr())
            );
        }
    }
    let (from, first) = (Instant::now(), count());
    while from.elapsed() < SAMPLE {
        child.wait(STEP)?;
    }
    let (took, bytes) = (from.elapsed(), count().saturating_sub(first));
    // None at all in that time is less than one.
    let rate = bytes.max(1) as f64 / took.as_secs_f64();
    tracing::debug!(accel = accel.word(), rate, start = ?from.duration_since(begin), "guest measured");
    Ok(rate)
}

fn guest_bytes(arch: Arch) -> Vec<u8> {
    match arch {
        Arch::Amd64 => x86_rom(),
        Arch::Arm64 => arm_kernel(),
    }
}

/// Rounds between two bytes.
const ROUNDS: u32 = 0x8_0000;

/// ```text
/// ff00  fa                 cli
/// ff01  66 b9 ROUNDS       mov  ecx, ROUNDS
/// ff07  66 01 c8           add  eax, ecx
/// ff0a  66 31 06 00 10     xor  [0x1000], eax
/// ff0f  66 49              dec  ecx
/// ff11  75 f4              jnz  0xff07
/// ff13  b0 2e              mov  al, '.'
/// ff15  e6 e9              out  0xe9, al       ; isa-debugcon
/// ff17  eb e8              jmp  0xff01
/// fff0  e9 0d ff           jmp  0xff00         ; where an x86 CPU begins
/// ```
fn x86_rom() -> Vec<u8> {
    let mut code = vec![0xfa, 0x66, 0xb9];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0x66, 0x01, 0xc8, 0x66, 0x31, 0x06, 0x00, 0x10, 0x66, 0x49, 0x75, 0xf4]);
    code.extend([0xb0, 0x2e, 0xe6, 0xe9, 0xeb, 0xe8]);
    accel::rom(&code)
}

/// No memory: with its MMU off, an ARM CPU has no cache for data.
///
/// ```text
/// 00  movz x1, #0x0900, lsl 16     ; PL011 of the virt machine
/// 04  movz x3, #ROUNDS >> 16, lsl 16
/// 08  add  x5, x5, x3
/// 0c  eor  x6, x6, x5
/// 10  mul  x5, x5, x6
/// 14  subs x3, x3, #1
/// 18  b.ne 0x08
/// 1c  movz w2, #'.'
/// 20  strb w2, [x1]
/// 24  b    0x04
/// ```
fn arm_kernel() -> Vec<u8> {
    let rounds = 0xd2a0_0003 | (ROUNDS >> 16) << 5;
    let code: [u32; 10] = [
        0xd2a1_2001,
        rounds,
        0x8b03_00a5,
        0xca05_00c6,
        0x9b06_7ca5,
        0xf100_0463,
        0x54ff_ff81,
        0x5280_05c2,
        0x3900_0022,
        0x17ff_fff8,
    ];
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jumps_of_the_x86_guest_lead_where_they_should() {
        let rom = x86_rom();
        let jump = |at: usize| (at + 2).wrapping_add_signed(isize::from(rom[at + 1].cast_signed()));
        assert_eq!((rom[0xff11], jump(0xff11)), (0x75, 0xff07));
        assert_eq!((rom[0xff17], jump(0xff17)), (0xeb, 0xff01));
        assert_eq!(rom[0xff03..0xff07], ROUNDS.to_le_bytes());
    }

    #[test]
    fn a_slower_guest_gives_longer_limits_and_a_fast_one_the_plain_ones() {
        let rate = tcg_rate(Arch::Amd64);
        assert!((slowdown(Arch::Amd64, rate) - TCG_BOOT).abs() < 1e-9);
        assert!((slowdown(Arch::Amd64, rate / 2.0) - 2.0 * TCG_BOOT).abs() < 1e-9);
        assert!((slowdown(Arch::Amd64, rate * 100.0) - 1.0).abs() < 1e-9);
        assert!((slowdown(Arch::Amd64, 0.0) - MOST).abs() < 1e-9);
        let calibration = Calibration { accel: Accel::Kvm, cpus: 8, slowdown: 1.0 };
        assert!((calibration.factor(4) - 1.0).abs() < 1e-9);
        let small = Calibration { cpus: 2, ..calibration };
        assert!((small.factor(1) - 1.0).abs() < 1e-9 && small.factor(4) > 2.0);
    }
}
