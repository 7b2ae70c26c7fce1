//! Stages fetch and unpack for a whole set of the lock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::arch::Arch;
use crate::error::{Failure, Kind};
use crate::fetch::{Fetcher, For, Mirrors, NotFetched, Request, Wanted};
use crate::lock::{Lock, Locked, LockedPackage, Metadata, SetKind};
use crate::spec::Project;
use crate::store::Store;
use crate::sys;
use crate::ui::Ui;
use crate::unpack::{DamagedObject, Unpacked, unpack};

/// A package whose payload is larger than this gets the threads that are free, since dpkg cuts such payloads into blocks.
const LARGE: u64 = 20_000_000;

/// What every stage works with.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The TOML files.
    pub project: &'a Project,
    /// The lock that fits them.
    pub locked: &'a Locked,
    /// Where everything lies.
    pub store: &'a Store,
    /// What people see.
    pub ui: &'a Ui,
    /// Threads to use; the result does not depend on it.
    pub threads: usize,
}

impl Work<'_> {
    /// Fetches what is missing of a set and unpacks it; the packages come back sorted by name.
    pub fn set(&self, kind: SetKind, name: &str, arch: Arch) -> Result<Vec<Unpacked>> {
        let packages = self.locked.packages(kind, name, arch)?;
        self.fetch(&packages)?;
        self.unpack(&packages)
    }

    /// Fetches one package if it is missing, and unpacks it.
    pub fn package(&self, package: &LockedPackage) -> Result<Unpacked> {
        self.fetch(&[package])?;
        self.one(package)
    }

    fn fetch(&self, packages: &[&LockedPackage]) -> Result<()> {
        let missing: Vec<&&LockedPackage> =
            packages.iter().filter(|p| self.store.object(p.sha256, p.size).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (mut mirrors, lock) = (Mirrors::of_machine()?, self.locked.lock());
        let fetcher = Fetcher::of_mirrors(self.store, self.ui, &mirrors)?;
        mirrors.read_lists(&fetcher);
        mirrors.say_left_out(self.ui);
        let requests: Vec<Request> = missing.iter().map(|p| request(p, lock, &mirrors)).collect();
        let fetched = fetcher.fetch(&requests);
        fetched.map_err(|error| self.explain_gone(error, &missing))
    }

    /// A package that is gone from every mirror was superseded: says by what.
    fn explain_gone(&self, error: anyhow::Error, missing: &[&&LockedPackage]) -> anyhow::Error {
        let Some(gone) =
            error.chain().find_map(|cause| cause.downcast_ref::<NotFetched>()).filter(|e| e.gone)
        else {
            return error;
        };
        let Some(package) = missing.iter().find(|p| p.title() == gone.name) else { return error };
        let arch = Arch::ALL.into_iter().find(|a| a.debian() == package.arch).unwrap_or(Arch::Amd64);
        let newest = Metadata::fetch(self.project, None, self.store, self.ui)
            .ok()
            .and_then(|m| m.newest(&package.name, arch));
        let now = match newest {
            Some(version) if version != package.version => {
                format!("; {} {version} is offered now", package.name)
            }
            _ => String::new(),
        };
        let text = format!("{} is gone from every mirror{now}", package.title());
        Failure::new(Kind::Fetch, text)
            .hint("run `kiln update debian` to move to what the mirrors offer")
            .because(error)
            .into()
    }

    fn unpack(&self, packages: &[&LockedPackage]) -> Result<Vec<Unpacked>> {
        let bar = self.ui.count_bar("Unpacking", packages.len() as u64);
        // The largest first: otherwise the kernel, begun last, would keep one thread busy while the others are done.
        let mut order: Vec<usize> = (0..packages.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(packages[*i].size));
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<Result<Unpacked>>>> =
            Mutex::new((0..packages.len()).map(|_| None).collect());
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, packages.len().max(1)) {
                scope.spawn(|| {
                    while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let package = packages[*index];
                        bar.message(package.name.clone());
                        let unpacked = self.one(package);
                        let failed = unpacked.is_err();
                        done.lock().expect("no holder panics")[*index] = Some(unpacked);
                        bar.inc(1);
                        if failed {
                            // The others need not begin what comes next.
                            next.store(order.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        drop(bar);
        sys::check_interrupt()?;
        let mut unpacked = Vec::with_capacity(packages.len());
        let mut first_error = None;
        for one in done.into_inner().expect("no holder panics") {
            match one {
                Some(Ok(package)) => unpacked.push(package),
                Some(Err(error)) => first_error = first_error.or(Some(error)),
                None => {}
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        let fresh = unpacked.iter().filter(|u| u.miss.is_some()).count();
        if fresh > 0 {
            self.ui.status("Unpacked", format!("{fresh} of {} packages", unpacked.len()));
            for one in unpacked.iter().filter(|u| u.miss.is_some()) {
                let why = one.miss.as_ref().map(ToString::to_string).unwrap_or_default();
                self.ui.detail("Unpacked", format!("{} {}: {why}", one.info.name, one.info.version));
            }
        }
        Ok(unpacked)
    }

    /// Unpacks one package. A .deb that was damaged since it was fetched is fetched again, once.
    fn one(&self, package: &LockedPackage) -> Result<Unpacked> {
        sys::check_interrupt()?;
        let threads = if package.size > LARGE { u32::try_from(self.threads).unwrap_or(1) } else { 1 };
        match unpack(self.store, package, threads) {
            Err(error) if error.chain().any(|cause| cause.downcast_ref::<DamagedObject>().is_some()) => {
                self.ui.warn(format!(
                    "the object of {} in the store was damaged; it is fetched again",
                    package.title()
                ));
                self.store.forget_object(package.sha256)?;
                self.fetch(&[package])?;
                unpack(self.store, package, threads)
            }
            other => other,
        }
    }
}

fn request(package: &LockedPackage, lock: &Lock, mirrors: &Mirrors) -> Request {
    let suite = lock.suite(&package.suite);
    let archive = suite.map_or("debian", |s| s.archive.as_str());
    let wanted = Wanted {
        archive,
        snapshot: suite.map(|s| s.snapshot.as_str()),
        kind: For::Package,
        architectures: &[&package.arch],
        suite: &package.suite,
        // `pool/main/h/hello.deb`
        component: package
            .path
            .strip_prefix("pool/")
            .and_then(|rest| rest.split('/').next())
            .unwrap_or_default(),
    };
    let urls = mirrors.of(&wanted).iter().map(|mirror| mirror.url.below(&package.path)).collect();
    Request { name: package.title(), sha256: package.sha256, size: package.size, urls }
}
