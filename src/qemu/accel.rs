//! Which accelerator to use, proven by a guest.
//!
//! A /dev/kvm that opens says little: nested and cloud hosts have ones whose guests hang, or that end QEMU when it sets the
//! CPU's registers, or that run real mode and stop at the first floating-point instruction of a kernel (kvm-pvm of some cloud
//! hosts: "KVM internal error. Suberror: 1"). So [`prove`] starts QEMU exactly as a machine would be started (same `-cpu`) with
//! a guest of a few instructions that does what firmware does first: it switches to 64-bit mode with paging, uses FPU and SSE,
//! prints [`TOKEN`] and ends. If that does not come within [`LIMIT`], the machine runs under TCG, and [`Choice::reason`] says why.

use std::path::Path;
use std::time::{Duration, Instant};

use fs_err as fs;

use crate::arch::Arch;
use crate::error::Failure;
use crate::exec::{self, Tool};

/// What the test guest prints.
pub const TOKEN: &str = "kiln-guest-alive";
/// A working KVM answers in a fifth of a second; five leave room for a busy host.
pub const LIMIT: Duration = Duration::from_secs(5);
/// How often the test guest is looked at.
const STEP: Duration = Duration::from_millis(10);
/// What QEMU says when KVM gives a guest up (kvm_handle_internal_error in accel/kvm/kvm-all.c).
const STOPPED: &str = "KVM internal error";

/// How guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the host's CPU.
    Kvm,
    /// Translated by QEMU: any guest on any host, ten to thirty times slower.
    Tcg,
}

impl Accel {
    /// The value of `-accel`.
    pub fn argument(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        }
    }

    /// The value of `-cpu`. What a translated guest would use because real processors do it fast, and TCG does slowly, is left out:
    ///
    /// * `amd64`: `rep movsb` and `rep stosb` for copies of any length (`erms` and its kin: TCG moves byte by byte), page tables of five
    ///   levels (`la57`: each miss of the TLB reads all of them), the switch at each access of the kernel to a program's memory (`smap`: ends a
    ///   translated block and has a TLB of its own), and state that is saved at every change of task and nobody has (`mpx`, `pku`, `pks`).
    /// * `arm64`: a plain core, for `max` has pointer authentication.
    pub fn cpu(self, arch: Arch) -> &'static str {
        match (self, arch) {
            (Accel::Kvm, _) => "host",
            (Accel::Tcg, Arch::Amd64) => "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc,-la57,-smap,-mpx,-pku,-pks",
            (Accel::Tcg, Arch::Arm64) => "neoverse-n1",
        }
    }

    /// Variables of QEMU's environment. TCG looks up where many of a guest's jumps lead in a hash table that it has from malloc, 13 to 19 % of
    /// profiles of a K3s server; in huge pages (glibc manual, "Memory Allocation Tunables") it misses the host's TLB less often.
    pub fn env(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Accel::Kvm => &[],
            Accel::Tcg => &[("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")],
        }
    }

    /// The name for people.
    pub fn word(self) -> &'static str {
        match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        }
    }
}

/// An accelerator and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The accelerator.
    pub accel: Accel,
    /// The reason, half a sentence.
    pub reason: String,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "accelerator: {} ({})", self.accel.word(), self.reason)
    }
}

/// Chooses the accelerator for guests of `arch`, with the emulator of the tool tree at `root`.
///
/// # Errors
/// The emulator is missing, the temporary folder cannot be written, or Ctrl-C. A KVM that does not work is no error.
pub fn prove(root: &Path, arch: Arch) -> Result<Choice, Failure> {
    let tcg = |reason: &str| Ok(Choice { accel: Accel::Tcg, reason: reason.to_owned() });
    if Arch::host() != Some(arch) {
        return tcg(&format!("this host cannot run {arch} code itself"));
    }
    let emulator = Tool::from_tree(root, super::emulator(arch))?;
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return tcg("there is no /dev/kvm"),
        Err(_) => return tcg("/dev/kvm may not be opened by this user"),
        Ok(_) => {}
    }
    match try_guest(root, &emulator, arch, Accel::Kvm) {
        Ok(Trial::Answered) => Ok(Choice { accel: Accel::Kvm, reason: "its test guest answered".to_owned() }),
        Ok(Trial::Stopped(why)) => tcg(&format!("KVM is there but it stopped its test guest: {why}")),
        Ok(Trial::Silent) => {
            tcg(&format!("KVM is there but its test guest did not answer in {} s", LIMIT.as_secs()))
        }
        Ok(Trial::Ended) => tcg("KVM is there but its test guest ended without an answer"),
        Err(exec::Error::Signal { .. } | exec::Error::Exit { .. }) => {
            tcg("KVM is there but QEMU failed to start its test guest")
        }
        Err(error) => Err(error.into()),
    }
}

/// What became of the test guest.
#[derive(Debug, PartialEq, Eq)]
enum Trial {
    /// Its token came.
    Answered,
    /// QEMU says that KVM cannot go on; the first line of it.
    Stopped(String),
    /// QEMU ended without the token.
    Ended,
    /// Neither came within [`LIMIT`].
    Silent,
}

/// Runs the test guest.
fn try_guest(root: &Path, emulator: &Tool, arch: Arch, accel: Accel) -> Result<Trial, exec::Error> {
    let io_error = |source| exec::Error::Io { program: emulator.name().to_owned(), source };
    let folder = tempfile::Builder::new().prefix("kiln-accel-").tempdir().map_err(io_error)?;
    let (guest, answer) = (folder.path().join("guest.bin"), folder.path().join("answer"));
    fs::write(&guest, guest_bytes(arch)).map_err(io_error)?;
    let mut child = trial(root, emulator, arch, accel, &guest, &answer).spawn()?;
    let begin = Instant::now();
    loop {
        let ended = child.wait(STEP)?.is_some();
        // QEMU makes the file when it starts.
        if fs::read_to_string(&answer).is_ok_and(|text| text.contains(TOKEN)) {
            return Ok(Trial::Answered);
        }
        // QEMU does not end then: it keeps the machine, stopped, for a debugger.
        if let Some(line) = child.stderr().lines().find(|line| line.contains(STOPPED)) {
            return Ok(Trial::Stopped(line.trim().to_owned()));
        }
        if ended {
            return Ok(Trial::Ended);
        }
        if begin.elapsed() > LIMIT {
            return Ok(Trial::Silent);
        }
    }
}

/// The call of `emulator` that runs `guest` as a machine would be run; what it says goes to the file `answer`.
pub(crate) fn trial(
    root: &Path,
    emulator: &Tool,
    arch: Arch,
    accel: Accel,
    guest: &Path,
    answer: &Path,
) -> exec::Command {
    let command = emulator
        .command()
        .args(["-no-user-config", "-nodefaults", "-display", "none", "-m", "64M", "-no-reboot", "-L"])
        .arg(root.join("usr/share/qemu"))
        .args(["-accel", accel.argument(), "-cpu", accel.cpu(arch), "-chardev"])
        .arg(format!("file,id=answer,path={}", answer.display().to_string().replace(',', ",,")));
    match arch {
        Arch::Amd64 => command
            .args(["-machine", "q35", "-device", "isa-debugcon,iobase=0xe9,chardev=answer"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
            .arg(guest),
        Arch::Arm64 => command.args(["-machine", "virt", "-serial", "chardev:answer", "-kernel"]).arg(guest),
    }
}

/// The test guest: on x86 a firmware of 64 KiB that starts at the reset vector, on ARM a flat kernel.
fn guest_bytes(arch: Arch) -> Vec<u8> {
    match arch {
        Arch::Amd64 => x86_rom(),
        Arch::Arm64 => arm_kernel(),
    }
}

/// Identity-maps the first 2 MiB by one large page and enters 64-bit mode as Intel's manual, volume 3A, 11.8.5 has it. Memory is
/// zero when QEMU starts, so only the used entries of the page tables are written.
///
/// ```text
/// ff00  fa                       cli
/// ff01  fc                       cld
/// ff02  ea 07 ff 00 f0           ljmp  0xf000:0xff07       ; the copy of this firmware below 1 MiB
/// ff07  31 c0                    xor   ax, ax
/// ff09  8e d8                    mov   ds, ax
/// ff0b  c7 06 00 10 03 20        mov   word [0x1000], 0x2003   ; level 4: present, writable
/// ff11  c7 06 00 20 03 30        mov   word [0x2000], 0x3003   ; level 3
/// ff17  c7 06 00 30 83 00        mov   word [0x3000], 0x83     ; level 2: a page of 2 MiB at 0
/// ff1d  2e 66 0f 01 16 73 ff     lgdt  cs:[0xff73]
/// ff24  66 b8 00 10 00 00        mov   eax, 0x1000
/// ff2a  0f 22 d8                 mov   cr3, eax
/// ff2d  66 b8 20 06 00 00        mov   eax, 0x620           ; PAE, OSFXSR, OSXMMEXCPT
/// ff33  0f 22 e0                 mov   cr4, eax
/// ff36  66 b9 80 00 00 c0        mov   ecx, 0xc0000080      ; EFER
/// ff3c  0f 32                    rdmsr
/// ff3e  80 cc 01                 or    ah, 1                ; LME
/// ff41  0f 30                    wrmsr
/// ff43  66 b8 33 00 00 80        mov   eax, 0x80000033      ; PE, MP, ET, NE, PG
/// ff49  0f 22 c0                 mov   cr0, eax
/// ff4c  66 ea 54 ff 0f 00 08 00  ljmp  8:0xfff54
/// ff54  9b                       fwait                      ; 64 bits from here
/// ff55  db e3                    fninit
/// ff57  66 0f 6e c0              movd  xmm0, eax
/// ff5b  0f 58 c0                 addps xmm0, xmm0
/// ff5e  be 89 ff 0f 00           mov   esi, 0xfff89         ; the token
/// ff63  ac                       lodsb
/// ff64  84 c0                    test  al, al
/// ff66  74 04                    jz    0xff6c
/// ff68  e6 e9                    out   0xe9, al             ; isa-debugcon
/// ff6a  eb f7                    jmp   0xff63
/// ff6c  b0 10                    mov   al, 0x10
/// ff6e  e6 f4                    out   0xf4, al             ; isa-debug-exit
/// ff70  f4                       hlt
/// ff71  eb fd                    jmp   0xff70
/// ff73  0f 00 79 ff 0f 00        limit and address of the table of segments
/// ff79  0, 00af9b000000ffff      no segment; 64-bit code, present, ring 0
/// ff89  TOKEN, 0
/// fff0  e9 0d ff                 jmp   0xff00               ; where an x86 CPU begins
/// ```
fn x86_rom() -> Vec<u8> {
    let mut code = vec![
        0xfa, 0xfc, 0xea, 0x07, 0xff, 0x00, 0xf0, 0x31, 0xc0, 0x8e, 0xd8, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20,
        0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, 0x2e, 0x66, 0x0f, 0x01, 0x16,
        0x73, 0xff, 0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x66, 0xb8, 0x20, 0x06, 0x00, 0x00,
        0x0f, 0x22, 0xe0, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30, 0x66,
        0xb8, 0x33, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x54, 0xff, 0x0f, 0x00, 0x08, 0x00, 0x9b,
        0xdb, 0xe3, 0x66, 0x0f, 0x6e, 0xc0, 0x0f, 0x58, 0xc0, 0xbe, 0x89, 0xff, 0x0f, 0x00, 0xac, 0x84, 0xc0,
        0x74, 0x04, 0xe6, 0xe9, 0xeb, 0xf7, 0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd, 0x0f, 0x00, 0x79, 0xff,
        0x0f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf,
        0x00,
    ];
    code.extend_from_slice(TOKEN.as_bytes());
    rom(&code)
}

/// A firmware of 64 KiB whose `code`, at most 240 bytes, begins at 0xff00, where the jump at the reset vector leads.
pub(crate) fn rom(code: &[u8]) -> Vec<u8> {
    let mut rom = vec![0; 0xff00];
    rom.extend(code);
    rom.resize(0xfff0, 0);
    rom.extend([0xe9, 0x0d, 0xff]);
    rom.resize(0x1_0000, 0);
    rom
}

/// ```text
/// 00  movz x1, #0x0900, lsl 16     ; PL011 of the virt machine
/// 04  adr  x0, 0x28                ; the token
/// 08  ldrb w2, [x0], #1
/// 0c  cbz  w2, 0x18
/// 10  strb w2, [x1]
/// 14  b    0x08
/// 18  movz w0, #0x8400, lsl 16
/// 1c  movk w0, #0x0008             ; PSCI SYSTEM_OFF
/// 20  hvc  #0
/// 24  b    0x24
/// 28  TOKEN, 0
/// ```
fn arm_kernel() -> Vec<u8> {
    let code: [u32; 10] = [
        0xd2a1_2001,
        0x1000_0120,
        0x3840_1402,
        0x3400_0062,
        0x3900_0022,
        0x17ff_fffd,
        0x52b0_8000,
        0x7280_0100,
        0xd400_0002,
        0x1400_0000,
    ];
    let mut kernel: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    kernel.extend_from_slice(TOKEN.as_bytes());
    kernel.push(0);
    kernel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_x86_guest_starts_at_the_reset_vector_and_reaches_its_token() {
        let rom = x86_rom();
        assert_eq!(rom.len(), 0x1_0000);
        let jump = i16::from_le_bytes([rom[0xfff1], rom[0xfff2]]);
        assert_eq!(0xfff3 + i32::from(jump), 0xff00);
        // The address that `mov esi` takes, in the copy of the firmware that ends at 1 MiB.
        assert_eq!(rom[0xff5e], 0xbe);
        let token = u32::from_le_bytes(rom[0xff5f..0xff63].try_into().unwrap()) as usize - 0xf_0000;
        assert_eq!(&rom[token..token + TOKEN.len()], TOKEN.as_bytes());
        assert_eq!(rom[token + TOKEN.len()], 0);
    }

    #[test]
    fn a_foreign_architecture_is_translated_without_a_trial() {
        let foreign = if Arch::host() == Some(Arch::Amd64) { Arch::Arm64 } else { Arch::Amd64 };
        let choice = prove(Path::new("/nowhere"), foreign).unwrap();
        assert_eq!(
            choice.to_string(),
            format!("accelerator: TCG (this host cannot run {foreign} code itself)")
        );
    }
}
