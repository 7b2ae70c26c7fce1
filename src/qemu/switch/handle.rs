//! Calls into the thread of a switch.
//!
//! The thread owns everything; another thread hands it a closure and waits for the answer, so there is no lock to wait for. All that
//! sockets said before is handled before a closure is run: a call sees connections and frames that were there before it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::event::State;

/// What the thread is asked to do.
pub(super) type Job = Box<dyn FnOnce(&mut State) + Send>;

/// The other threads' side of the loop. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Handle {
    /// `None` only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    pub(super) fn start(name: &str, seed: u64) -> io::Result<Handle> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (jobs, inbox) = mpsc::channel();
        let mut state = State::new(name, seed, &wake)?;
        let theirs = Arc::clone(&wake);
        let thread = std::thread::Builder::new()
            .name(format!("switch {name}"))
            .spawn(move || state.run(&inbox, &theirs))?;
        Ok(Handle { jobs: Some(jobs), wake, thread: Some(thread) })
    }

    /// Runs `job` in the thread; `None` when it has ended.
    pub(super) fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut State) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |state| {
            // The caller waits for it.
            let _ = answer.send(job(state));
        });
        self.jobs.as_ref()?.send(job).ok()?;
        self.ring();
        result.recv().ok()
    }

    fn ring(&self) {
        // It fails only when the counter is at its end, and then the thread is woken anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
