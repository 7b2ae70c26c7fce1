//! One machine of a run through all its boots: switched on and off, asked, watched.
//!
//! Who does something to a machine's power holds [`Node::life`] meanwhile, so that a step and a fault do not pull at it at once.
//! Only the watching thread ([`Node::look`]) reads the console, the report of readiness and QEMU's events; all others look at what it
//! wrote down.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::context::{Context, STEP, Trouble, lock};
use super::watch::{Power, Told};
use crate::error::Failure;
use crate::qemu::config::MachineConfig;
use crate::qemu::disk::{Cut, Export};
use crate::qemu::door::{self, Door, Output};
use crate::qemu::machine::Machine;
use crate::qemu::ready;
use crate::qemu::stuck;
use crate::qemu::usage::Usage;
use crate::scenario::result::{BootEnd, ConsoleExcerpt, Evidence, Stuck};
use crate::scenario::seeded;
use crate::scenario::spec::{self, Pattern};

/// How long QEMU may take to act on an order such as a reset.
const SOON: Duration = Duration::from_secs(10);

/// A machine of the run.
#[derive(Debug)]
pub(super) struct Node<'a> {
    spec: &'a spec::Node,
    tools: &'a Path,
    config: MachineConfig,
    /// The run's folder for machines.
    folder: PathBuf,
    disks: Vec<Export>,
    life: Mutex<()>,
    running: Mutex<Option<Running>>,
    told: Mutex<Told>,
    cuts: AtomicU64,
}

/// What is there once a machine was switched on for the first time.
#[derive(Debug)]
struct Running {
    machine: Machine,
    door: Arc<Door>,
    lines: Receiver<String>,
}

impl<'a> Node<'a> {
    pub(super) fn new(
        spec: &'a spec::Node,
        tools: &'a Path,
        config: MachineConfig,
        folder: PathBuf,
        disks: Vec<Export>,
        told: Told,
    ) -> Self {
        Node {
            spec,
            tools,
            config,
            folder,
            disks,
            life: Mutex::new(()),
            running: Mutex::new(None),
            told: Mutex::new(told),
            cuts: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &'a str {
        &self.spec.name
    }

    pub(super) fn spec(&self) -> &'a spec::Node {
        self.spec
    }

    /// What is known of it.
    pub(super) fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        lock(&self.told)
    }

    /// Switches it on.
    pub(super) fn start(&self, context: &Context<'_>) -> Result<(), Trouble> {
        let _life = lock(&self.life);
        self.switch_on(context)
    }

    fn switch_on(&self, context: &Context<'_>) -> Result<(), Trouble> {
        context.check()?;
        let mut running = lock(&self.running);
        self.told().begin(context);
        let broken = |error: anyhow::Error| match error.downcast::<Failure>() {
            Ok(failure) => Trouble::from(failure),
            Err(other) => Trouble::new(format!("{other:#}")),
        };
        match running.as_mut() {
            Some(running) => running.machine.power_on().map_err(broken)?,
            None => {
                let machine = Machine::start(self.tools, &self.config, Some(&self.folder)).map_err(broken)?;
                let (sender, lines) = channel();
                machine.console.observe(Box::new(move |_, line| {
                    // Nobody listens any more once the run is over.
                    let _ = sender.send(line.to_owned());
                }));
                let port = machine.ports.get(1).map(Arc::clone);
                let port = port.ok_or_else(|| Trouble::new("the machine has no door"))?;
                *running = Some(Running { machine, door: Arc::new(Door::new(port)), lines });
            }
        }
        drop(running);
        self.told().power = Power::On;
        Ok(())
    }

    /// Looks at everything that came since the last look.
    pub(super) fn look(&self, context: &Context<'_>) {
        let mut running = lock(&self.running);
        let Some(running) = running.as_mut() else { return };
        let mut told = self.told();
        while let Ok(line) = running.lines.try_recv() {
            told.line(context, &line);
        }
        while let Some(line) = running.machine.ports.first().and_then(|port| port.next_line(Duration::ZERO)) {
            told.report(context, &running.machine, &line);
        }
        // A socket that closes is told by what became of the process, below.
        while let Ok(Some(event)) = running.machine.qmp.event(Duration::ZERO) {
            if event.name == "RESET" {
                told.reset(context);
                running.door.forget();
            }
        }
        if told.power != Power::On {
            return;
        }
        if let Err(failure) = running.machine.check_alive() {
            if failure.kind == crate::error::Kind::Interrupted {
                return;
            }
            running.door.breaker().trip(failure.to_string());
            told.died(context, &failure);
        }
    }

    /// Waits until its boot has ended well, at most `limit`.
    pub(super) fn wait_ready(&self, context: &Context<'_>, limit: Duration) -> Result<(), Trouble> {
        let end = Instant::now() + limit;
        loop {
            context.check()?;
            let told = self.told();
            if let Some(report) = told.ready() {
                if report.is_good() {
                    return Ok(());
                }
                let evidence = Evidence {
                    node: self.name().to_owned(),
                    command: "systemctl status of the failed units".to_owned(),
                    stdout: report.log.join("\n"),
                    expected: Some("running, with no failed unit".to_owned()),
                    failed: true,
                    ..Evidence::default()
                };
                let failed = report.failed.join(", ");
                let why = format!("{}: systemd is {}, failed units: {failed}", self.name(), report.state);
                return Err(Trouble::new(why).with(evidence));
            }
            let lost = told.lost();
            let power = told.power;
            drop(told);
            if let Some(line) = lost {
                return Err(Trouble::new(format!(
                    "{} will not get ready: its console says `{line}`",
                    self.name()
                )));
            }
            if power == Power::Off {
                return Err(Trouble::new(format!("{} is off", self.name())));
            }
            if Instant::now() > end {
                let jobs = self.told().jobs();
                let why = format!("{} was not ready after {} s", self.name(), limit.as_secs());
                let evidence = Evidence {
                    node: self.name().to_owned(),
                    command: "systemctl list-jobs".to_owned(),
                    stdout: jobs,
                    failed: true,
                    ..Evidence::default()
                };
                return Err(Trouble::new(why).with(evidence));
            }
            std::thread::sleep(STEP);
        }
    }

    /// The door, waited for no longer than `limit` where the machine is just booting.
    fn door(&self) -> Result<Arc<Door>, Trouble> {
        let running = lock(&self.running);
        let off = || Trouble::new(format!("{} is off", self.name()));
        let running = running.as_ref().ok_or_else(off)?;
        if self.told().power != Power::On { Err(off()) } else { Ok(Arc::clone(&running.door)) }
    }

    fn ask<T>(
        &self,
        context: &Context<'_>,
        question: impl FnOnce(&Door) -> Result<T, Failure>,
    ) -> Result<T, Trouble> {
        context.check()?;
        let answer = question(&*self.door()?);
        answer.map_err(|failure| {
            let mut trouble = Trouble::from(failure);
            trouble.why = format!("{}: {}", self.name(), trouble.why);
            trouble
        })
    }

    /// Runs a script with `set -eu`. One that does not end is an error with what it said so far.
    pub(super) fn run(
        &self,
        context: &Context<'_>,
        script: &str,
        limit: Duration,
    ) -> Result<Output, Trouble> {
        let output = self.ask(context, |door| door.run(&format!("set -eu\n{script}"), limit))?;
        if output.ending == door::Ending::Done {
            return Ok(output);
        }
        let evidence = Evidence {
            node: self.name().to_owned(),
            command: script.trim().to_owned(),
            stdout: crate::scenario::result::text::excerpt(&output.stdout),
            stderr: crate::scenario::result::text::excerpt(&output.stderr),
            expected: Some(format!("an end within {} s", limit.as_secs())),
            failed: true,
            status: None,
        };
        let why = format!("{}: it did not end within {} s and was killed", self.name(), limit.as_secs());
        Err(Trouble::new(why).with(evidence))
    }

    pub(super) fn wait_for_unit(
        &self,
        context: &Context<'_>,
        unit: &str,
        limit: Duration,
    ) -> Result<(), Trouble> {
        self.ask(context, |door| door.wait_for_unit(unit, limit))
    }

    pub(super) fn wait_for_port(
        &self,
        context: &Context<'_>,
        port: u16,
        limit: Duration,
    ) -> Result<(), Trouble> {
        self.ask(context, |door| door.wait_for_port(port, limit))
    }

    pub(super) fn put(
        &self,
        context: &Context<'_>,
        bytes: &[u8],
        to: &str,
        limit: Duration,
    ) -> Result<(), Trouble> {
        self.ask(context, |door| door.put(bytes, to, 0o644, limit))
    }

    pub(super) fn get(&self, context: &Context<'_>, from: &str, limit: Duration) -> Result<Vec<u8>, Trouble> {
        self.ask(context, |door| door.get(from, limit))
    }

    /// Waits for a line of this boot's console with `pattern` in it.
    pub(super) fn wait_for_console(
        &self,
        context: &Context<'_>,
        pattern: &Pattern,
        limit: Duration,
    ) -> Result<String, Trouble> {
        let end = Instant::now() + limit;
        loop {
            context.check()?;
            if let Some(line) = self.told().find(pattern) {
                return Ok(line);
            }
            if Instant::now() > end {
                let seconds = limit.as_secs();
                return Err(Trouble::new(format!(
                    "{}: no line of its console has `{pattern}` after {seconds} s",
                    self.name()
                )));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Waits until it stops for the reason `pattern`; then it is switched off.
    pub(super) fn wait_refused(
        &self,
        context: &Context<'_>,
        pattern: &Pattern,
        limit: Duration,
    ) -> Result<String, Trouble> {
        let end = Instant::now() + limit;
        loop {
            context.check()?;
            let told = self.told();
            if told.ready().is_some() {
                return Err(Trouble::new(format!("{} got ready, although it is doomed", self.name())));
            }
            if let Some(line) = told.find(pattern) {
                drop(told);
                // Others may still be in their last words; the machine itself does not go on from here.
                self.told().leaving(BootEnd::Refused);
                self.cut(context)?;
                return Ok(line);
            }
            drop(told);
            if Instant::now() > end {
                let seconds = limit.as_secs();
                return Err(Trouble::new(format!(
                    "{} did not say `{pattern}` within {seconds} s",
                    self.name()
                )));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Restarts it in order and waits until it is ready again.
    pub(super) fn reboot(&self, context: &Context<'_>, limit: Duration) -> Result<(), Trouble> {
        let _life = lock(&self.life);
        let end = Instant::now() + limit;
        let boots = self.told().boots();
        self.told().leaving(BootEnd::Reboot);
        self.ask(context, Door::reboot)?;
        self.wait_for_reset(context, boots, limit)?;
        self.wait_ready(context, end.saturating_duration_since(Instant::now()))
    }

    /// Lets its kernel panic and waits until it is ready again.
    pub(super) fn crash(&self, context: &Context<'_>, limit: Duration) -> Result<(), Trouble> {
        let _life = lock(&self.life);
        let end = Instant::now() + limit;
        let boots = self.told().boots();
        self.told().leaving(BootEnd::Crash);
        self.ask(context, Door::crash)?;
        self.wait_for_reset(context, boots, limit)?;
        self.wait_ready(context, end.saturating_duration_since(Instant::now()))
    }

    fn wait_for_reset(&self, context: &Context<'_>, boots: usize, limit: Duration) -> Result<(), Trouble> {
        let end = Instant::now() + limit;
        while self.told().boots() == boots {
            context.check()?;
            if Instant::now() > end {
                let seconds = limit.as_secs();
                return Err(Trouble::new(format!("{} did not go down within {seconds} s", self.name())));
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Pulls the plug and plugs it in again; what its disks lost.
    pub(super) fn power_cut(&self, context: &Context<'_>) -> Result<Cut, Trouble> {
        let _life = lock(&self.life);
        self.told().leaving(BootEnd::Cut);
        let cut = self.cut(context)?;
        self.switch_on(context)?;
        Ok(cut)
    }

    /// Begins `script`, pulls the plug `after` that, and plugs it in again.
    pub(super) fn cut_while(
        &self,
        context: &Context<'_>,
        script: &str,
        after: Duration,
    ) -> Result<Cut, Trouble> {
        let _life = lock(&self.life);
        let door = self.door()?;
        let script = format!("set -eu\n{script}");
        let limit = after + SOON * 60;
        std::thread::scope(|scope| {
            let begun = Instant::now();
            let writer = scope.spawn(|| door.run(&script, limit));
            while begun.elapsed() < after {
                context.check()?;
                if writer.is_finished() {
                    let ended = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    let how = ended.map_or_else(|failure| failure.to_string(), |output| output.describe());
                    return Err(Trouble::new(format!("the script that writes ended before the cut: {how}")));
                }
                std::thread::sleep(STEP.min(after.saturating_sub(begun.elapsed())));
            }
            self.told().leaving(BootEnd::Cut);
            let cut = self.cut(context)?;
            // The machine is gone, so the script fails; that is what it was for.
            let _ = writer.join();
            self.switch_on(context)?;
            Ok(cut)
        })
    }

    /// Kills QEMU and lets the disks lose what they lose.
    fn cut(&self, context: &Context<'_>) -> Result<Cut, Trouble> {
        let mut running = lock(&self.running);
        let Some(running) = running.as_mut() else {
            return Err(Trouble::new(format!("{} is off", self.name())));
        };
        running.machine.power_cut();
        running.door.breaker().trip("its plug was pulled");
        running.door.forget();
        self.told().off(context);
        let number = self.cuts.fetch_add(1, Ordering::SeqCst);
        let mut all = Cut::default();
        for (index, disk) in self.disks.iter().enumerate() {
            let seed = seeded::derive(context.seed, &format!("disk {} {number} {index}", self.name()));
            let cut = disk.power_cut(seed)?;
            all.dropped += cut.dropped;
            all.kept += cut.kept;
            all.torn += cut.torn;
        }
        Ok(all)
    }

    /// Switches it off in order.
    pub(super) fn power_off(&self, context: &Context<'_>, limit: Duration) -> Result<(), Trouble> {
        let _life = lock(&self.life);
        self.told().leaving(BootEnd::Off);
        self.ask(context, Door::poweroff)?;
        let end = Instant::now() + limit;
        loop {
            context.check()?;
            if let Some(running) = lock(&self.running).as_mut()
                && !running.machine.is_on()?
            {
                break;
            }
            if Instant::now() > end {
                let seconds = limit.as_secs();
                return Err(Trouble::new(format!("{} did not switch off within {seconds} s", self.name())));
            }
            std::thread::sleep(STEP);
        }
        self.told().off(context);
        self.disks.iter().try_for_each(Export::clean)?;
        Ok(())
    }

    fn machine(&self, act: impl FnOnce(&mut Machine) -> Result<(), Failure>) -> Result<(), Trouble> {
        let mut running = lock(&self.running);
        let Some(running) = running.as_mut() else {
            return Err(Trouble::new(format!("{} is off", self.name())));
        };
        Ok(act(&mut running.machine)?)
    }

    pub(super) fn pause(&self, context: &Context<'_>) -> Result<(), Trouble> {
        self.machine(Machine::pause)?;
        self.told().paused(context, true);
        Ok(())
    }

    pub(super) fn resume(&self, context: &Context<'_>) -> Result<(), Trouble> {
        self.machine(Machine::resume)?;
        self.told().paused(context, false);
        Ok(())
    }

    pub(super) fn screenshot(&self, path: &Path) -> Result<(), Trouble> {
        self.machine(|machine| machine.screenshot(path))
    }

    /// What its QEMU had of the CPUs, by the number of its process, while it is on.
    pub(super) fn usage(&self) -> Option<(u32, Usage)> {
        let running = lock(&self.running);
        let pid = running.as_ref()?.machine.id();
        (self.told().power == Power::On).then(|| (pid, Usage::of(pid).unwrap_or_default()))
    }

    /// Requests to its disks so far.
    pub(super) fn requests(&self) -> u64 {
        let of = |disk: &Export| {
            let done = disk.counters();
            done.reads + done.writes + done.flushes + done.trims
        };
        self.disks.iter().map(of).sum()
    }

    /// What is wrong with the files of its disks on this machine, and what to do.
    pub(super) fn trouble(&self) -> Option<String> {
        let why = self.disks.iter().find_map(Export::trouble)?;
        let folder = self.folder.display();
        Some(format!(
            "{why}: {folder} needs room for what nodes write; free some, or set TMPDIR to a folder on another file system"
        ))
    }

    /// Fails what it is asked just now, because of `why`; what it is asked next may be answered.
    pub(super) fn interrupt(&self, why: &str) {
        if let Some(running) = lock(&self.running).as_ref()
            && running.door.breaker().tripped().is_none()
        {
            running.door.breaker().trip(why);
        }
    }

    /// The end of [`Node::interrupt`].
    pub(super) fn go_on(&self, why: &str) {
        if let Some(running) = lock(&self.running).as_ref() {
            running.door.breaker().mend(why);
        }
    }

    /// The last lines of its console.
    pub(super) fn console_now(&self, context: &Context<'_>) -> ConsoleExcerpt {
        self.look(context);
        ConsoleExcerpt { node: self.name().to_owned(), lines: self.told().tail() }
    }

    /// What it is doing, for a run that has failed.
    pub(super) fn stuck(&self, limit: Duration) -> Option<Stuck> {
        let mut running = lock(&self.running);
        let running = running.as_mut()?;
        if self.told().power != Power::On {
            return None;
        }
        let console = Arc::clone(&running.machine.console);
        let texts = stuck::look(Some(&running.door), &mut running.machine.qmp, &console, limit);
        let mut stuck = Stuck::default();
        for found in texts {
            let lines = found.text.lines().map(str::to_owned);
            match found.name {
                stuck::JOBS => stuck.jobs.extend(lines),
                stuck::FAILED => stuck.failed_units.extend(lines),
                name => stuck.stacks.extend(std::iter::once(format!("== {name}")).chain(lines)),
            }
        }
        Some(stuck)
    }

    /// Asks it which units its boot spent its time on; a machine that does not answer leaves them out of the report.
    pub(super) fn ask_units(&self, limit: Duration) {
        let mut running = lock(&self.running);
        let Some(running) = running.as_mut() else { return };
        let mut told = self.told();
        let Some(report) = told.ready().cloned().filter(|_| told.power == Power::On) else { return };
        match ready::timeline(&mut running.machine, 0, &told.boot(), &report, limit) {
            Ok(timeline) => told.units(&timeline),
            Err(failure) => tracing::debug!(node = self.name(), %failure, "timeline"),
        }
    }

    /// Copies its console log to `to`.
    pub(super) fn save_log(&self, to: &Path) -> std::io::Result<bool> {
        let running = lock(&self.running);
        let Some(running) = running.as_ref() else { return Ok(false) };
        fs_err::copy(running.machine.console.log(), to)?;
        Ok(true)
    }

    /// The socket of the shell that `kiln test attach` uses.
    pub(super) fn socket(&self, port: &str) -> Option<PathBuf> {
        let running = lock(&self.running);
        Some(running.as_ref()?.machine.folder().join(format!("{port}.sock")))
    }

    /// The ready report's port and the door's, in this order.
    pub(super) fn ports() -> Vec<String> {
        vec![ready::PORT.to_owned(), door::PORT.to_owned()]
    }
}
