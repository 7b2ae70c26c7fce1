//! The lines by which a sick machine is known, each with an example from the source that prints it.

use std::sync::{LazyLock, Mutex, PoisonError};

use regex_automata::meta::{Cache, Config, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind, PatternSet};

use super::{Expected, Severity};

/// A kind of line that should not be there.
#[derive(Debug)]
pub struct Rule {
    /// Its name in reports and lists.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// How bad it is on an emulated machine, whose processors stand still when the host is busy.
    pub under_tcg: Severity,
    /// The regular expression, anywhere in the line.
    pub pattern: &'static str,
    /// What it finds.
    pub about: &'static str,
    /// What a person should look at.
    pub look: &'static str,
    /// When it is brought about on purpose.
    expected: When,
}

/// What makes a rule's findings expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Never,
    /// The kernel that was made to panic, or that refuses a damaged image.
    Panic,
    /// A damaged image, or something else that must be refused.
    Damage,
    /// The boot after a stop without warning.
    After,
}

impl Rule {
    /// Whether a finding comes of `what`; `booted` tells that a kernel started since.
    pub(super) fn is_expected(&self, what: Expected, booted: bool) -> bool {
        match self.expected {
            When::Never => false,
            When::Panic => what == Expected::Damage || (what == Expected::Crash && !booted),
            When::Damage => what == Expected::Damage,
            When::After => matches!(what, Expected::Crash | Expected::PowerCut),
        }
    }
}

const fn rule(
    name: &'static str,
    severity: Severity,
    pattern: &'static str,
    about: &'static str,
    look: &'static str,
) -> Rule {
    Rule { name, severity, under_tcg: severity, pattern, about, look, expected: When::Never }
}

const fn warning_under_tcg(mut rule: Rule) -> Rule {
    rule.under_tcg = Severity::Warning;
    rule
}

const fn on_purpose(when: When, mut rule: Rule) -> Rule {
    rule.expected = when;
    rule
}

use Severity::{Error, Fatal, Warning};

/// The rule of the only line after which nothing in the machine answers any more.
pub(super) const PANIC: &str = "kernel-panic";

/// All rules. The first one that matches a line names it, so the narrow ones stand before the wide ones.
pub static RULES: &[Rule] = &[
    on_purpose(
        When::Panic,
        rule(
            PANIC,
            Fatal,
            "Kernel panic - not syncing",
            "the kernel gave up",
            "the reason behind `not syncing` and the call trace below it",
        ),
    ),
    on_purpose(
        When::Damage,
        rule(
            "verity",
            Fatal,
            "device-mapper: verity: .*(?:corrupted|error|failed)|dm-verity device (?:corrupted|has I/O error)",
            "a block of the root is not what the root hash says",
            "whether disk or image were changed after the build, or the disk fails to read",
        ),
    ),
    on_purpose(
        When::Damage,
        rule(
            "initrd",
            Fatal,
            "kiln: cannot boot:",
            "the initrd found no root it may trust",
            "the words behind it; which disks the machine has, and with which drivers",
        ),
    ),
    on_purpose(
        When::Damage,
        rule(
            "boot-loader",
            Fatal,
            "EFI stub: ERROR|BdsDxe: No bootable option|Failed to execute boot entry|Error preparing initrd",
            "the firmware or the boot loader cannot start the kernel",
            "the ESP: is there a UKI, and can the firmware read the disk",
        ),
    ),
    rule(
        "init-crash",
        Fatal,
        r"Freezing execution|systemd\[1\]: Caught <[A-Z]+>|Attempted to kill init",
        "systemd itself crashed",
        "the signal or assertion in the lines before",
    ),
    on_purpose(
        When::Damage,
        rule(
            "emergency",
            Fatal,
            r"(?i)emergency (?:mode|shell)|emergency\.(?:target|service)|in rescue mode|Cannot open access to console, the root account is locked",
            "boot ended in the emergency shell",
            "the failed or missing mount in the lines before; fstab, the disk's partitions, a failed fsck",
        ),
    ),
    warning_under_tcg(rule(
        "soft-lockup",
        Error,
        "BUG: soft lockup",
        "a processor ran kernel code for over 20 s without a break",
        "the call trace; on an emulated machine whether the host was busy",
    )),
    warning_under_tcg(rule(
        "hard-lockup",
        Error,
        "hard LOCKUP",
        "a processor took no interrupt for over 10 s",
        "the call trace; on an emulated machine whether the host was busy",
    )),
    warning_under_tcg(rule(
        "rcu-stall",
        Error,
        r"rcu.*(?:detected (?:expedited )?stalls?|self-detected stall|kthread starved for)",
        "a processor did not pass through the scheduler for over 20 s",
        "the call trace; on an emulated machine whether the host was busy",
    )),
    // The rings of a userspace fault, before the kernel's own faults.
    rule(
        "program-crash",
        Error,
        r"\]: segfault at |traps: \S+\[\d+\] |\]: unhandled exception: |\(.*\) of user \d+ (?:dumped core|terminated abnormally)",
        "a program crashed",
        "which program and library the line names; `journalctl -b` around it",
    ),
    on_purpose(
        When::Panic,
        rule(
            "kernel-oops",
            Error,
            r"\bOops: |Internal error: |Unable to handle kernel |general protection fault",
            "kernel code crashed",
            "the function behind `RIP:` or `pc :` and the modules in the call trace",
        ),
    ),
    rule(
        "kernel-bug",
        Error,
        r"\bkernel BUG at |\bBUG: ",
        "an assertion in the kernel failed",
        "the file and line it names, and the call trace",
    ),
    rule(
        "kernel-sanitizer",
        Error,
        r"\b(?:KASAN|UBSAN|KCSAN|KFENCE): ",
        "a checker built into the kernel found a fault",
        "the report below it",
    ),
    rule(
        "kernel-warning",
        Warning,
        r"WARNING: CPU: \d+ PID: \d+ at ",
        "the kernel met something it thought impossible",
        "the file and line it names: is it known upstream",
    ),
    rule(
        "hardware-error",
        Error,
        r"\[Hardware Error\]|Machine check events logged",
        "processor or memory reported an error",
        "the hardware; `rasdaemon` or the machine's own log",
    ),
    rule(
        "oom-kill",
        Error,
        r"(?:Memory cgroup o|O)ut of memory: Kill|\boom-kill:constraint=",
        "memory ran out and a process was killed for it",
        "which process and cgroup it names; give the node more memory or the service a lower limit",
    ),
    rule(
        "page-allocation",
        Warning,
        "page allocation failure: order",
        "the kernel did not get memory for something",
        "the order and the memory counts below it",
    ),
    rule(
        "hung-task",
        Error,
        r"INFO: task .* blocked for more than \d+ seconds",
        "a process waited in the kernel for over two minutes",
        "its call trace: mostly a disk or an NFS server that does not answer",
    ),
    rule(
        "nfs-silent",
        Warning,
        "nfs: server .* (?:not responding|timed out)",
        "an NFS server does not answer",
        "the server, the link to it, and whether a step cut it",
    ),
    on_purpose(
        When::Damage,
        rule(
            "io-error",
            Error,
            r"I/O error, dev |Buffer I/O error on dev|critical (?:medium|target|space) error|nvme\S* .*(?:timeout, (?:aborting|reset|disable)|controller is down)|ata\d+(?:\.\d+)?: (?:exception |failed command)",
            "a disk did not read or write",
            "the disk and sector it names; the host's disk under the image",
        ),
    ),
    rule(
        "read-only-remount",
        Error,
        "(?i)remounting filesystem read-only|Filesystem has been set read-only",
        "a file system was made read-only because of an error",
        "the error before it",
    ),
    rule(
        "ext4-error",
        Error,
        r"EXT4-fs (?:error|\(.*\): (?:panic|error|.*(?:corrupt|bad geometry|checksum|unable to read superblock)))|EXT4-fs warning .*(?:checksum|corrupt)|Aborting journal|JBD2: .*(?:Detected IO errors|corrupt|recovery failed)",
        "the file system of /var is damaged",
        "the inode it names; `e2fsck -n` on the partition of a copy of the disk",
    ),
    on_purpose(
        When::Damage,
        rule(
            "erofs-error",
            Error,
            r"erofs:? \(device [^)]*\): .*(?:fail|corrupt|bogus|invalid|unsupported|unexpected|cannot|error)",
            "the root cannot be read",
            "whether the image is whole (`kiln dev`); the offset it names",
        ),
    ),
    rule(
        "file-system-damage",
        Error,
        r"FAT-fs \(.*\): (?:error|IO error)|XFS .*(?:Corruption|Internal error)|UNEXPECTED INCONSISTENCY|contains a file system with errors|fsck.*(?:failed with exit status|exited with)",
        "a file system is damaged",
        "the output of fsck in the journal",
    ),
    on_purpose(
        When::After,
        rule(
            "fat-not-clean",
            Warning,
            r"FAT-fs \(.*\): Volume was not properly unmounted",
            "the ESP was mounted when the machine stopped",
            "who writes to the ESP, and when",
        ),
    ),
    on_purpose(
        When::After,
        rule(
            "journal-not-clean",
            Warning,
            "corrupted or uncleanly shut down, renaming and replacing",
            "journald was writing when the machine stopped",
            "nothing, if the machine was stopped by force",
        ),
    ),
    rule(
        "ordering-cycle",
        Error,
        "(?i)ordering cycle",
        "units wait for each other, and systemd left one out",
        "`systemd-analyze verify default.target`; the After= and Before= of the units it names",
    ),
    rule(
        "generator-failed",
        Error,
        r"-generators/\S+ (?:failed|terminated)|Failed to (?:run|execute|start) generators",
        "a generator failed, so units are missing",
        "what the generator reads: fstab, the kernel command line, credentials",
    ),
    on_purpose(
        When::Damage,
        rule(
            "unit-failed",
            Error,
            r"\[FAILED\]|\[DEPEND\]|\[ TIME \]|systemd\[1\]: (?:Failed to start |Dependency failed for |Timed out waiting for device )",
            "a unit did not start",
            "`systemctl status` and `journalctl -u` of the unit it names",
        ),
    ),
    on_purpose(
        When::Damage,
        rule(
            "unit-restarts",
            Error,
            // images/files/watch
            r"kiln: \S+ was started again \d+ times in ",
            "a service is started again and again, which systemd does not call failed",
            "its last words behind it; `journalctl -b -u` of the unit it names",
        ),
    ),
    rule(
        "module-missing",
        Error,
        r"modprobe: FATAL|Failed to (?:find|insert) module|disagrees about version of symbol|module verification failed",
        "a kernel module is missing or does not fit",
        "`[kernel.modules]` of the profile, and whether modules and kernel are of one version",
    ),
    rule(
        "conntrack-full",
        Error,
        "nf_conntrack: .*table full",
        "connections are dropped, for the table of connections is full",
        "net.netfilter.nf_conntrack_max and who opens so many",
    ),
    rule(
        "network-device-leak",
        Error,
        r"unregister_netdevice: waiting for \S+ to become free",
        "a network device cannot be removed",
        "the namespace of the container it was in",
    ),
    warning_under_tcg(rule(
        "network-transmit",
        Error,
        r"NETDEV WATCHDOG: .*transmit queue \d+ timed out",
        "a network card does not send",
        "the card's driver; on an emulated machine whether the host was busy",
    )),
    warning_under_tcg(rule(
        "service-watchdog",
        Error,
        r"Watchdog timeout \(limit ",
        "a service did not say in time that it lives",
        "what the service waited for; on an emulated machine whether the host was busy",
    )),
];

/// All patterns in one automaton: a line is read once, whatever the number of rules.
///
/// The automaton's cache takes about 15 MB, and `regex` would keep one for each of several threads. Consoles are slow, so all take turns
/// at one.
struct Automaton {
    regex: Regex,
    scratch: Mutex<(Cache, PatternSet)>,
}

static AUTOMATON: LazyLock<Automaton> = LazyLock::new(|| {
    let patterns: Vec<_> = RULES.iter().map(|rule| rule.pattern).collect();
    // As `regex::bytes::RegexSet` does it: every pattern that matches is told, and bytes need not be UTF-8.
    let regex = Regex::builder()
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .configure(
            Config::new().match_kind(MatchKind::All).utf8_empty(false).which_captures(WhichCaptures::None),
        )
        .build_many(&patterns)
        .expect("constant patterns are valid");
    let scratch = Mutex::new((regex.create_cache(), PatternSet::new(regex.pattern_len())));
    Automaton { regex, scratch }
});

/// The first rule that matches the line, and its number.
pub(super) fn find(line: &str) -> Option<(usize, &'static Rule)> {
    let Automaton { regex, scratch } = &*AUTOMATON;
    // A search that panicked leaves a cache that the next one begins anew with.
    let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
    let (cache, found) = &mut *scratch;
    found.clear();
    regex.which_overlapping_matches_with(cache, &Input::new(line), found);
    let index = found.iter().next()?.as_usize();
    Some((index, RULES.get(index)?))
}
