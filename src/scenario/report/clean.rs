//! A run whose text is fit to be shown: the one place where what guests wrote is made harmless and bounded, for all formats but
//! JSON.

use crate::scenario::result::{
    Accelerator, Boot, ConsoleExcerpt, ConsoleLine, Disk, Evidence, Fault, Finding, Host, Image, Incident,
    Invariant, Link, Nic, Node, Outcome, Run, Scenario, Step, Stuck, Timeline, Unit, Verdict, text,
};
use crate::ui::plain;

/// Of one console not more lines than this are shown, the last ones.
const LINES: usize = 400;

/// A copy of `run` in which every text, whatever its field, went through [`plain`] and is bounded.
pub(super) fn clean(run: &Run) -> Run {
    let mut run = run.clone();
    run.clean();
    run
}

/// What has text in it.
trait Text {
    /// Whether a long list of these is a console, of which only the end is shown.
    const LINE: bool = false;

    fn clean(&mut self);
}

impl Text for String {
    fn clean(&mut self) {
        *self = plain(&text::excerpt(self.as_bytes()));
    }
}

impl<T: Text> Text for Option<T> {
    fn clean(&mut self) {
        self.iter_mut().for_each(T::clean);
    }
}

impl<T: Text> Text for Vec<T> {
    fn clean(&mut self) {
        if T::LINE {
            self.drain(..self.len().saturating_sub(LINES));
        }
        self.iter_mut().for_each(T::clean);
    }
}

impl Text for ConsoleLine {
    const LINE: bool = true;

    fn clean(&mut self) {
        let ConsoleLine { at_ms: _, text } = self;
        text.clean();
    }
}

impl Text for Outcome {
    fn clean(&mut self) {
        match self {
            Outcome::Passed => {}
            Outcome::Failed { why } | Outcome::Skipped { why } => why.clean(),
        }
    }
}

/// The fields with text, and behind `;` all others: a field that is in neither list does not compile.
macro_rules! texts {
    ($($name:ident { $($text:ident)* $(; $($other:ident)*)? })*) => {$(
        impl Text for $name {
            fn clean(&mut self) {
                let $name { $($text,)* $($($other: _,)*)? } = self;
                $(Text::clean($text);)*
            }
        }
    )*};
}

texts! {
    Run {
        kiln_version scenario started host accelerator images nodes steps faults invariants findings incidents warnings links verdict;
        schema seed duration_ms peak_memory_kib
    }
    Scenario { name description file sha256 }
    Host { kernel; cpus memory_mib }
    Accelerator { name reason; calibration }
    Image { profile flavour file sha256_before sha256_after root_hash kernel }
    Node { name profile flavour role disks nics boots console_log console_tail stuck; memory_mib cpus states }
    Disk { bus; size }
    Nic { network model mac address }
    Boot { timeline; number began_ms ready_ms ended_ms ended }
    Timeline { units critical_chain; firmware_ms loader_ms kernel_ms initrd_ms userspace_ms }
    Unit { name; start_ms end_ms }
    ConsoleExcerpt { node lines }
    Stuck { jobs failed_units stacks }
    Step {
        name nodes kind outcome evidence console files;
        number began_ms duration_ms limit_ms attempts
    }
    Evidence { node command stdout stderr expected; status failed }
    Fault { node kind detail; at_ms until_ms }
    Invariant { name nodes outcome evidence; checked broken_ms }
    Finding { node rule line excerpt allowed_by; at_ms severity }
    Incident { node what detail console; at_ms }
    Link { node network pcap; sent received }
    Verdict { outcome failures; passed failed skipped }
}
