//! How much longer guests take here than on the machine that limits are written for.
//!
//! A limit in a scenario is what something may take under KVM on a machine that is not busy. What a guest takes under TCG depends on
//! the emulator and on the host's CPU; so it is measured, by a guest. It does the same few
//! instructions again and again (arithmetic, and memory on x86) and says so by a byte each time. kiln counts
//! how many come in the CPU time that QEMU had. [`Calibration::slowdown`] is [`tcg_rate`] over that rate, times [`TCG_BOOT`]: how much longer a
//! boot takes under TCG than under KVM where that rate was measured. So a CPU half as fast gives twice the slowdown,
//! and under KVM, where the guest is several times faster, there is none.
//!
//! Nodes that boot at once share the host's CPUs; [`Calibration::crowd`] says how much that costs. Other programs have the CPUs at times: a
//! moment says little about the next hour. So what they take is measured apart, as the time that the guest could have run and did
//! not, counts up to [`MOST_BUSY`], and is measured again all through a run ([`Calibration::busy_as`]).

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fs_err as fs;

use crate::arch::Arch;
use crate::error::{Failure, Kind};
use crate::exec::Tool;
use crate::qemu::accel::{self, Accel};
use crate::qemu::usage::Usage;

/// How long the guest is watched.
const SAMPLE: Duration = Duration::from_millis(800);
/// The CPU time that it must have had, on a machine that is busy.
const ENOUGH: Duration = Duration::from_millis(300);
/// And how long that is waited for.
const LONGEST: Duration = Duration::from_secs(6);
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

/// The slowest CPU that is believed, six times slower under TCG than the one that was measured: what is slower than that is a mistake in
/// the measurement, and no machine with the memory that nodes take.
const MOST: f64 = 6.0 * TCG_BOOT;
/// How much longer limits become because of other programs, at most. They may end at any time, and a step that waits for a stuck
/// machine must not wait for hours because of them.
pub const MOST_BUSY: f64 = 2.0;

/// What was measured of an accelerator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// How guest code is run.
    pub accel: Accel,
    /// CPUs of the host that kiln may use.
    pub cpus: u32,
    /// How much longer one guest takes than under KVM, on a CPU of its own; at least 1.
    pub slowdown: f64,
    /// CPUs that other programs would keep busy just now.
    pub others: f64,
}

/// What the guest that measures did in a while.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    /// Bytes that it wrote.
    bytes: u64,
    /// What its QEMU had of the CPUs.
    usage: Usage,
}

impl Sample {
    /// Bytes in a second of CPU time. None at all is less than one.
    fn rate(self) -> f64 {
        self.bytes.max(1) as f64 / self.usage.ran.as_secs_f64().max(1e-3)
    }

    /// CPUs that others would keep busy. QEMU has one busy thread: with `n` others on `cpus` it waits `(n + 1) / cpus` times as long. Fewer
    /// others than there are CPUs besides its own are not seen, and hold nobody up.
    fn others(self, cpus: u32) -> f64 {
        let stretch = self.usage.stretch();
        if stretch < 1.1 { 0.0 } else { stretch * f64::from(cpus.max(1)) - 1.0 }
    }
}

impl Calibration {
    /// Measures `accel` for guests of `arch`, with the emulator of the tool tree at `root`, in about a second. Measured once in
    /// a process.
    ///
    /// # Errors
    /// [`Kind::Tool`] when the guest says nothing; Ctrl-C.
    pub fn measure(root: &Path, arch: Arch, accel: Accel, cpus: u32) -> Result<Self, Failure> {
        static KNOWN: Mutex<Vec<(Arch, Accel, Sample)>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(a, b, _)| (*a, *b) == (arch, accel)).map(|(_, _, sample)| *sample);
        let sample = match found {
            Some(sample) => sample,
            None => {
                let sample = sample(root, arch, accel)?;
                known.push((arch, accel, sample));
                sample
            }
        };
        Ok(Self::of(arch, accel, cpus, sample))
    }

    fn of(arch: Arch, accel: Accel, cpus: u32, sample: Sample) -> Self {
        Calibration { accel, cpus, slowdown: slowdown(arch, sample.rate()), others: sample.others(cpus) }
    }

    /// How much longer everything takes while `nodes` are busy at once, since they share the host's CPUs; at least 1.
    pub fn crowd(&self, nodes: usize) -> f64 {
        (nodes as f64 * BOOT_CPUS / f64::from(self.cpus.max(1))).max(1.0)
    }

    /// How much longer everything takes beside the other programs that were met when it was measured, while `nodes` are busy at once; at
    /// least 1 and at most [`MOST_BUSY`].
    pub fn busy(&self, nodes: usize) -> f64 {
        let wanted = nodes as f64 * BOOT_CPUS + self.others;
        (wanted / f64::from(self.cpus.max(1)) / self.crowd(nodes)).clamp(1.0, MOST_BUSY)
    }

    /// As [`Calibration::busy`] for nodes that really run, and had so much of the CPUs lately: `nodes` of them want no more than was
    /// counted with, so whatever they waited for beyond that was others'.
    pub fn busy_as(&self, nodes: usize, usage: Usage) -> f64 {
        (usage.stretch() / self.crowd(nodes)).clamp(1.0, MOST_BUSY)
    }

    /// What limits are multiplied by while `nodes` are on and nothing else runs.
    pub fn quiet(&self, nodes: usize) -> f64 {
        self.slowdown * self.crowd(nodes)
    }

    /// What limits are multiplied by while `nodes` are on.
    pub fn factor(&self, nodes: usize) -> f64 {
        self.quiet(nodes) * self.busy(nodes)
    }

    /// Of what [`Calibration::factor`] is made, for people.
    pub fn why(&self, nodes: usize) -> Vec<String> {
        let (cpus, crowd) = (self.cpus, self.crowd(nodes));
        let cores = if cpus == 1 { "core" } else { "cores" };
        let many = if nodes == 1 { "1 node has".to_owned() } else { format!("{nodes} nodes share") };
        let (slowdown, accel) = (self.slowdown, self.accel.word());
        let mut why = vec![if slowdown < MOST {
            format!("{slowdown:.1} for {accel}, by the CPU time of a test guest")
        } else {
            format!(
                "{slowdown:.1} for {accel}: a core of this machine seems even slower, which is not believed"
            )
        }];
        if crowd > 1.0 {
            why.push(format!("{crowd:.1} since {many} {cpus} {cores}"));
        }
        let busy = self.busy(nodes);
        if busy > 1.0 {
            let capped = if busy < MOST_BUSY { "" } else { ", and no more, since they may end at any time" };
            why.push(format!(
                "{busy:.1} since other programs want {:.1} cores just now{capped}",
                self.others
            ));
        }
        why
    }

    /// How long `nodes` take to boot at once.
    pub fn boot(&self, nodes: usize) -> Duration {
        KVM_BOOT.mul_f64(self.factor(nodes))
    }
}

fn slowdown(arch: Arch, rate: f64) -> f64 {
    (TCG_BOOT * tcg_rate(arch) / rate.max(f64::MIN_POSITIVE)).clamp(1.0, MOST)
}

/// Lets the guest run for a while.
fn sample(root: &Path, arch: Arch, accel: Accel) -> Result<Sample, Failure> {
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
    let (from, first, before) = (Instant::now(), count(), Usage::of(child.id()));
    let mut usage = Usage::default();
    while from.elapsed() < SAMPLE || (usage.ran < ENOUGH && from.elapsed() < LONGEST) {
        child.wait(STEP)?;
        usage = match (before, Usage::of(child.id())) {
            (Some(before), Some(now)) => now.since(before),
            // A kernel that does not count: all of the time was the guest's.
            _ => Usage { ran: from.elapsed(), waited: Duration::ZERO },
        };
    }
    let sample = Sample { bytes: count().saturating_sub(first), usage };
    tracing::debug!(accel = accel.word(), ?sample, start = ?from.duration_since(begin), "guest measured");
    Ok(sample)
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
        let calibration = Calibration { accel: Accel::Kvm, cpus: 8, slowdown: 1.0, others: 0.0 };
        assert!((calibration.factor(4) - 1.0).abs() < 1e-9);
        let small = Calibration { cpus: 2, ..calibration };
        assert!((small.factor(1) - 1.0).abs() < 1e-9 && small.factor(4) > 2.0);
    }

    fn sample(bytes: u64, ran: u64, waited: u64) -> Sample {
        let ms = Duration::from_millis;
        Sample { bytes, usage: Usage { ran: ms(ran), waited: ms(waited) } }
    }

    /// Samples of a machine of two cores: quiet, beside 2 and 4 programs that keep a core busy each, and beside 26. The last one was recorded
    /// while seven people compiled there.
    #[test]
    fn a_busy_machine_is_no_slow_machine_and_makes_limits_longer_by_no_more_than_the_cap() {
        let of = |sample| Calibration::of(Arch::Amd64, Accel::Tcg, 2, sample);
        let quiet = of(sample(552, 800, 4));
        assert!((quiet.slowdown - TCG_BOOT).abs() < 0.1 && quiet.others == 0.0, "{quiet:?}");
        assert!((quiet.factor(4) - quiet.quiet(4)).abs() < 1e-9);
        let mut last = quiet.factor(4);
        for (beside, sample) in
            [(2.0, sample(365, 530, 270)), (4.0, sample(220, 320, 480)), (26.0, sample(41, 60, 780))]
        {
            let busy = of(sample);
            assert!((busy.slowdown / quiet.slowdown - 1.0).abs() < 0.05, "the same CPU: {busy:?}");
            assert!((busy.others - beside).abs() < 1.1, "{beside}: {busy:?}");
            let factor = busy.factor(4);
            assert!(factor >= last && factor <= quiet.quiet(4) * MOST_BUSY * 1.05, "{factor} {busy:?}");
            last = factor;
        }
        let recorded = of(sample(278, 304, 4867));
        assert!(recorded.slowdown < TCG_BOOT && recorded.busy(4) == MOST_BUSY, "{recorded:?}");
        // It was 124.1.
        assert!(last < 35.0, "{last}");
    }

    #[test]
    fn a_guest_that_gets_next_to_nothing_is_not_believed() {
        for sample in [sample(0, 0, 6000), sample(0, 1, 0), sample(1, 6000, 0), sample(0, 0, 0)] {
            let calibration = Calibration::of(Arch::Amd64, Accel::Tcg, 2, sample);
            assert!(calibration.slowdown <= MOST && calibration.busy(4) <= MOST_BUSY, "{calibration:?}");
            assert!(calibration.factor(4).is_finite() && calibration.factor(4) <= 200.0, "{calibration:?}");
        }
    }

    #[test]
    fn a_run_sees_what_others_take_and_not_what_its_own_nodes_take_of_each_other() {
        let calibration = Calibration { accel: Accel::Tcg, cpus: 2, slowdown: 5.0, others: 0.0 };
        let usage =
            |ran, waited| Usage { ran: Duration::from_secs(ran), waited: Duration::from_secs(waited) };
        // Four nodes want 6.4 cores and have two.
        assert!((calibration.busy_as(4, usage(20, 44)) - 1.0).abs() < 0.01);
        assert!((calibration.busy_as(4, usage(20, 76)) - 1.5).abs() < 0.01);
        assert!((calibration.busy_as(4, usage(2, 600)) - MOST_BUSY).abs() < 1e-9);
        assert!((calibration.busy_as(4, Usage::default()) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_the_factor_is_made_of_is_said() {
        let quiet = Calibration { accel: Accel::Tcg, cpus: 2, slowdown: 5.0, others: 0.0 };
        assert_eq!(
            quiet.why(4),
            ["5.0 for TCG, by the CPU time of a test guest", "3.2 since 4 nodes share 2 cores"]
        );
        let busy = Calibration { others: 2.0, ..quiet };
        assert_eq!(busy.why(4)[2], "1.3 since other programs want 2.0 cores just now");
        let full = Calibration { others: 26.0, ..quiet };
        assert_eq!(
            full.why(4)[2],
            "2.0 since other programs want 26.0 cores just now, and no more, since they may end at any time"
        );
        let slow = Calibration { slowdown: MOST, ..quiet };
        assert!(slow.why(1)[0].contains("is not believed"), "{:?}", slow.why(1));
    }
}
