//! What all parts of a run share: its clock, its limits, its record, and the word that ends it early.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::progress::{self, Activity, Progress};
use crate::error::{Failure, Kind};
use crate::scenario::calibrate::{Calibration, MOST_BUSY};
use crate::scenario::report::Events;
use crate::scenario::result::{ConsoleExcerpt, Evidence, Fault, Incident};
use crate::scenario::spec::{Saved, Span};

/// Why something did not go as it should. Bigger than a [`Failure`]: it carries what shows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    /// What was wrong: one sentence, or lines with the sentence first.
    pub(super) why: String,
    /// What shows it.
    pub(super) evidence: Vec<Evidence>,
    /// The run is being ended, by Ctrl-C or by something that is told elsewhere; trying again is useless.
    pub(super) over: bool,
}

impl Trouble {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Trouble { why: why.into(), ..Trouble::default() }
    }

    pub(super) fn with(mut self, evidence: Evidence) -> Self {
        self.evidence.push(evidence);
        self
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let mut why = failure.to_string();
        for hint in failure.hints() {
            why.push('\n');
            why.push_str(hint);
        }
        Trouble { why, evidence: Vec::new(), over: failure.kind == Kind::Interrupted }
    }
}

/// What is written down beside the steps.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) faults: Vec<Fault>,
    pub(super) incidents: Vec<Incident>,
    pub(super) saved: Saved,
}

/// Shared by the threads of a run.
pub(super) struct Context<'a> {
    /// Who is told what happens.
    pub(super) events: &'a dyn Events,
    /// The seed of everything random.
    pub(super) seed: u64,
    /// When the run began.
    pub(super) started: Instant,
    /// By how much limits are longer than under KVM, while nothing else runs on this machine.
    quiet: f64,
    /// By how much they are longer because of what else runs, in thousandths: now, and at its worst.
    busy: AtomicU32,
    worst: AtomicU32,
    /// What the run may take where limits are as they are under KVM.
    limit: Span,
    progress: Mutex<Watched>,
    over: AtomicBool,
    calm: AtomicBool,
    why: Mutex<Option<String>>,
    record: Mutex<Record>,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("seed", &self.seed)
            .field("quiet", &self.quiet)
            .finish_non_exhaustive()
    }
}

/// Whether the machines do anything, and the step that waits for it.
#[derive(Debug, Default)]
struct Watched {
    progress: Progress,
    /// When the step began, since the beginning of the run, and how long it waits for machines that do nothing.
    step: Option<(Duration, Duration)>,
    /// Why the step is given up.
    stuck: Option<String>,
}

/// How often somebody who waits looks around.
pub(super) const STEP: Duration = Duration::from_millis(100);

impl<'a> Context<'a> {
    /// `nodes` are on at once, at most.
    pub(super) fn new(
        events: &'a dyn Events,
        seed: u64,
        calibration: &Calibration,
        nodes: usize,
        limit: Span,
    ) -> Self {
        let busy = thousandths(calibration.busy(nodes));
        Context {
            events,
            seed,
            started: Instant::now(),
            quiet: calibration.quiet(nodes),
            busy: AtomicU32::new(busy),
            worst: AtomicU32::new(busy),
            limit,
            progress: Mutex::default(),
            over: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            why: Mutex::new(None),
            record: Mutex::new(Record::default()),
        }
    }

    /// Milliseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// A limit on this host as busy as it is now.
    pub(super) fn limit(&self, span: Span) -> Duration {
        span.scaled(self.quiet * f64::from(self.busy.load(Ordering::SeqCst)) / 1000.0)
    }

    /// Other programs make everything take so many times as long from now on.
    pub(super) fn busy(&self, factor: f64) {
        let busy = thousandths(factor);
        if self.busy.swap(busy, Ordering::SeqCst) != busy {
            tracing::debug!(factor, "other programs on this machine");
        }
        self.worst.fetch_max(busy, Ordering::SeqCst);
    }

    /// A step begins that waits for machines that do nothing for so long; without a time it waits on purpose.
    pub(super) fn step_begins(&self, patience: Option<Duration>) {
        let mut watched = lock(&self.progress);
        watched.stuck = None;
        watched.step = patience.map(|patience| (self.started.elapsed(), patience.max(progress::LEAST)));
    }

    /// It is over; says why, if it was given up.
    pub(super) fn step_ends(&self) -> Option<String> {
        let mut watched = lock(&self.progress);
        watched.step = None;
        watched.stuck.take()
    }

    /// What the machines have done so far. Says why if the step is given up because of it, once.
    pub(super) fn see(&self, activity: Activity) -> Option<String> {
        let mut watched = lock(&self.progress);
        watched.progress.see(self.started.elapsed(), activity);
        let (began, patience) = watched.step.filter(|_| watched.stuck.is_none())?;
        let done = watched.progress.stuck(began, patience)?;
        let why = format!("no machine does anything any more: {}", done.text());
        watched.stuck = Some(why.clone());
        Some(why)
    }

    /// Fails once the run is to end, or the present step is given up.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        self.goes_on()?;
        match &lock(&self.progress).stuck {
            Some(why) => Err(Trouble { why: why.clone(), evidence: Vec::new(), over: true }),
            None => Ok(()),
        }
    }

    /// Fails once the run is to end.
    pub(super) fn goes_on(&self) -> Result<(), Trouble> {
        let over = |why: &str| Trouble { why: why.to_owned(), evidence: Vec::new(), over: true };
        if crate::sys::interrupted() {
            return Err(over("interrupted"));
        }
        if self.over.load(Ordering::SeqCst) {
            return Err(over(lock(&self.why).as_deref().unwrap_or("the run is over")));
        }
        let worst = f64::from(self.worst.load(Ordering::SeqCst)) / 1000.0;
        let limit = self.limit.scaled(self.quiet * worst);
        if self.started.elapsed() > limit {
            let limit = limit.as_secs();
            self.incident(
                None,
                format!("the run did not end within its limit of {limit} s"),
                String::new(),
                vec![],
            );
            return Err(over("the run's limit is over"));
        }
        Ok(())
    }

    /// Sleeps, unless the run ends.
    pub(super) fn sleep(&self, time: Duration) -> Result<(), Trouble> {
        self.sleep_while(time, &|| self.check())
    }

    /// Sleeps while `check` is content.
    pub(super) fn sleep_while(
        &self,
        time: Duration,
        check: &dyn Fn() -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let end = Instant::now() + time;
        loop {
            check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    /// The steps are over: no fault happens any more.
    pub(super) fn calm(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    /// As [`Context::check`], for faults.
    pub(super) fn check_fault(&self) -> Result<(), Trouble> {
        if self.calm.load(Ordering::SeqCst) {
            return Err(Trouble { why: "the steps are over".to_owned(), evidence: Vec::new(), over: true });
        }
        self.check()
    }

    /// Ends the run, quietly: everything is done.
    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Something that makes it useless to go on: it is written down, and the run ends.
    pub(super) fn incident(
        &self,
        node: Option<&str>,
        what: String,
        detail: String,
        console: Vec<ConsoleExcerpt>,
    ) {
        let mut why = lock(&self.why);
        if why.is_some() || self.over.load(Ordering::SeqCst) {
            return;
        }
        let whose = node.map(|node| format!("{node}: ")).unwrap_or_default();
        *why = Some(format!("the run ended early: {whose}{what}"));
        let incident = Incident { at_ms: self.now(), node: node.map(str::to_owned), what, detail, console };
        self.events.incident(&incident);
        self.record().incidents.push(incident);
        self.over.store(true, Ordering::SeqCst);
    }

    /// What was written down so far.
    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

fn thousandths(factor: f64) -> u32 {
    (factor.clamp(1.0, MOST_BUSY) * 1000.0).round() as u32
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
